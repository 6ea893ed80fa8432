"""The command `lmx merge`: several runs of one shape become one model."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmx.core.errors import DONE, UserError
from lmx.run.arguments import Parser

if TYPE_CHECKING:
    from lmx.core.schema import ExperimentConfig
    from lmx.training.checkpoints import Checkpoints

EXAMPLE = """example:
  lmx merge --method=uniform runs/a runs/b runs/c --out=runs/soup
  lmx merge --method=uniform runs/a@1000 runs/a@1500 runs/a@2000 --out=runs/averaged
  lmx merge --method=slerp --share=0.3 runs/chat runs/code --out=runs/both
  lmx merge --method=task_arithmetic --base=runs/base runs/chat --weights=-1 --out=W
"""


class Source(NamedTuple):
    """A checkpoint of a workdir, open to be read."""

    name: str
    folder: Path
    step: int
    checkpoints: Checkpoints
    config: ExperimentConfig
    shapes: dict[str, tuple[int, ...]]


def main(argv: list[str]) -> int:
    """Parses the command line, merges, returns the exit code."""
    from lmx.finetune.merging import METHODS

    parser = Parser(
        prog="lmx merge",
        description="Average or merge models of one shape into a new workdir.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="DIR[@STEP]", help="workdirs, or steps of them")
    add("--method", choices=METHODS, default="uniform", help="(default uniform)")
    add("--out", required=True, metavar="DIR", help="a new workdir for the result")
    add("--weights", type=numbers, help="of the models, such as 0.7,0.3 (default 1,…)")
    add("--decay", type=float, help="of 'ema': what is kept of the models before")
    add("--share", type=float, help="of 'slerp': 0 is the first model, 1 the second")
    add("--base", metavar="DIR[@STEP]", help="of 'task_arithmetic': what all came from")
    options = parser.parse_args(argv)
    merge(
        options.models,
        Path(options.out),
        method=options.method,
        base=options.base,
        weights=options.weights,
        decay=options.decay,
        share=options.share,
    )
    return DONE


def numbers(text: str) -> tuple[float, ...]:
    """Returns the numbers of '0.7,0.3', the type of an option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not numbers and commas"
        ) from None


def merge(
    models: Sequence[str],
    out: Path,
    *,
    method: str = "uniform",
    base: str | None = None,
    weights: Sequence[float] | None = None,
    decay: float | None = None,
    share: float | None = None,
) -> None:
    """Writes what `method` makes of `models` into the new workdir `out`.

    The result and one leaf of each model are in memory. See `lmx.finetune.merging`.

    Raises:
      UserError: the models are of other shapes or tokenizers, or the options do not
        suit the method; `out` is there already.
      CheckpointError: a model has no checkpoint that can be used.
    """
    from lmx.core.errors import pick
    from lmx.finetune.merging import METHODS, check_options, merge_leaf

    pick(METHODS, method, "method")
    given = {"weights": weights, "decay": decay, "share": share, "base": base}
    chosen = check_options(method, len(models), given)
    names = [*models, *([] if base is None else [base])]
    with ExitStack() as stack:
        sources = [opened(name, stack) for name in names]
        for source in sources[1:]:
            check_alike(sources[0], source)
        merged = {}
        for name in sources[0].shapes:
            *leaves, last = [s.checkpoints.read_param(s.step, name) for s in sources]
            if base is not None:
                chosen["base"] = last
            else:
                leaves.append(last)
            merged[name] = merge_leaf(name, METHODS[method], leaves, **chosen)
        how = {"method": method, **given, "models": [facts_of(s) for s in sources]}
        write(out, sources[0], merged, how)
    print(f"written: {out}, {method} of {', '.join(names)}")
    print(f'next:    lmx generate --workdir={out} --prompt="…"')


def opened(name: str, stack: ExitStack) -> Source:
    """Returns the checkpoint that `DIR` or `DIR@STEP` names."""
    from lmx.core import config as configs
    from lmx.finetune.adapter import is_adapted
    from lmx.training.checkpoints import Checkpoints

    folder, _, number = name.partition("@")
    if number and not number.isdigit():
        raise UserError(f"{name}: what follows @ is a step, a whole number")
    try:
        text = (Path(folder) / "config.json").read_text(encoding="utf8")
        config = configs.from_json(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no run ({error}); import published models first"
        ) from error
    if is_adapted(config.adapter):
        raise UserError(
            f"{folder} holds an adapter, whose weights are not those of a model; "
            "lmx export and lmx import it first"
        )
    checkpoints = stack.enter_context(Checkpoints(Path(folder) / "checkpoints"))
    step = int(number) if number else checkpoints.latest()
    if step is None or step not in checkpoints.steps():
        raise UserError(f"{name}: no such step; there are {checkpoints.steps()}")
    shapes = checkpoints.param_shapes(step)
    return Source(name, Path(folder), step, checkpoints, config, shapes)


def check_alike(one: Source, other: Source) -> None:
    """Raises a `UserError` that names the first thing in which two models differ."""
    for field in dataclasses.fields(one.config.model):
        mine, theirs = (getattr(s.config.model, field.name) for s in (one, other))
        if mine != theirs and field.name not in FREE:
            raise UserError(
                f"model.{field.name} is {mine!r} in {one.name} and {theirs!r} in "
                f"{other.name}; only models of one shape merge"
            )
    tokenizers = [s.checkpoints.facts(s.step).get("tokenizer") for s in (one, other)]
    if tokenizers[0] != tokenizers[1]:
        raise UserError(
            f"{one.name} and {other.name} have different tokenizers "
            f"({str(tokenizers[0])[:12]}, {str(tokenizers[1])[:12]}): their rows of "
            "the embedding are of other tokens"
        )
    for name in sorted(one.shapes.keys() | other.shapes.keys()):
        mine, theirs = one.shapes.get(name), other.shapes.get(name)
        if mine != theirs:
            raise UserError(
                f"{name} has shape {mine} in {one.name} and {theirs} in {other.name}; "
                "only models of one shape merge"
            )


# What models may differ in: where they came from, and how they are computed.
FREE = (
    *("init_from", "size", "init_scale", "context_length", "param_dtype"),
    *("compute_dtype", "residual_dtype", "softmax_dtype"),
    *("layer_loop", "remat", "kernels"),
)


def facts_of(source: Source) -> dict[str, Any]:
    """Returns what the result remembers of a model."""
    content = source.checkpoints.content(source.step)
    return {"path": source.name, "step": source.step, "digest": content}


def write(
    out: Path, source: Source, merged: dict[str, Any], how: dict[str, Any]
) -> None:
    """Writes a workdir with the merged parameters, else like that of `source`."""
    from lmx import __version__
    from lmx.core import config as configs
    from lmx.core.new_folder import new_folder
    from lmx.core.trees import nest
    from lmx.core.workdir import write_atomic
    from lmx.data.built import TEMPLATE
    from lmx.inputs.tokenizers import Tokenizer
    from lmx.training.checkpoints import Checkpoints

    kept = source.checkpoints.facts(source.step)
    facts = {
        "lmx": __version__,
        "tokenizer": kept.get("tokenizer"),
        "family": kept.get("family"),
        "merged": how,
    }
    with new_folder(out) as new:
        Tokenizer.load(source.folder / "tokenizer").save(new.path / "tokenizer")
        if (template := source.folder / TEMPLATE).exists():
            write_atomic(new.path / TEMPLATE, template.read_bytes())
        with Checkpoints(new.path / "checkpoints", facts=facts) as checkpoints:
            with new.held():
                checkpoints.save(0, {"params": nest(merged)})
            checkpoints.wait()
        write_atomic(new.path / "config.json", configs.to_json(source.config))
