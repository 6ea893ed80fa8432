"""Which parameters the patterns of an adapter choose, or why they cannot be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmx.core.errors import UserError, did_you_mean
from lmx.core.schema import AdapterConfig
from lmx.core.trees import compile_patterns

Sides = Mapping[str, tuple[int, int]]


def check(config: AdapterConfig) -> None:
    """Raises a `UserError` for an adapter that no model can have."""
    if config.rank < 1:
        raise UserError(f"adapter.rank={config.rank} must be at least 1")
    if not config.alpha > 0:
        raise UserError(f"adapter.alpha={config.alpha} must be above 0")
    if config.method is None and config.targets:
        raise UserError(
            f"adapter.targets={list(config.targets)} are changed by no adapter.method; "
            "set it to 'lora', or name in adapter.train what trains in full"
        )
    if config.quantize is not None and config.method is None and not config.train:
        raise UserError(
            f"adapter.quantize={config.quantize!r} is for kernels that do not train, "
            "and all of them do; set adapter.method or adapter.train"
        )


def select(
    config: AdapterConfig, names: Sequence[str], linear: Sides
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names of kernels to change, and of parameters to train in full.

    `names` are those of all parameters and `linear` the inputs and outputs of the
    kernels of linear layers.

    Raises:
      UserError: a pattern finds nothing, or what cannot be changed; a parameter is
        chosen twice; the rank is larger than a kernel.
    """
    trained = frozenset(
        name
        for pattern in config.train
        for name in _found("adapter.train", pattern, names)
    )
    if config.method is None:
        return frozenset(), trained
    targets = frozenset(
        name for pattern in config.targets for name in _kernels(pattern, names, linear)
    )
    if not config.targets:
        targets = frozenset(name for name in linear if "/router/" not in name) - trained
    for name in sorted(targets & trained):
        raise UserError(
            f"{name} is in adapter.targets and in adapter.train; take it out of one"
        )
    for name in sorted(targets):
        if config.rank > min(linear[name]):
            inputs, outputs = linear[name]
            raise UserError(
                f"adapter.rank={config.rank} is larger than {name}, which has "
                f"{inputs} inputs and {outputs} outputs; at most {min(linear[name])}"
            )
    return targets, trained


def _found(option: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Returns the names that a pattern finds; there must be one."""
    (compiled,) = compile_patterns([pattern])
    found = [name for name in names if compiled.search(name)]
    if not found:
        raise UserError(
            f"{option}: {pattern!r} finds no parameter of this model"
            f"{did_you_mean(pattern, names)}"
        )
    return found


def _kernels(pattern: str, names: Sequence[str], linear: Sides) -> list[str]:
    """Returns the kernels of linear layers that a pattern finds; there must be one."""
    found = _found("adapter.targets", pattern, names)
    kernels = [name for name in found if name in linear]
    other = [n for n in found if n.endswith("/kernel") and n not in linear]
    if other or not kernels:
        why = (
            "of experts, or of keys and values that latents hold, there is no single "
            "product"
            if other
            else "it is no kernel"
        )
        raise UserError(
            f"adapter.targets: {pattern!r} finds {(other or found)[0]}, which cannot "
            f"be changed by a low rank ({why}); leave it out, or name it in "
            "adapter.train"
        )
    return kernels
