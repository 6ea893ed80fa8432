"""From an experiment file and command-line overrides to a frozen `ExperimentConfig`.

Three steps: an experiment's `get_config(arg)` edits a ConfigDict of defaults,
`--config.key=value` edits it again, and `freeze` checks every value against `schema.py`
and returns dataclasses. After that nothing looks up a key by its name.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lmx.core.errors import UserError, did_you_mean
from lmx.core.schema import ExperimentConfig

# What `:smoke` changes, so that any experiment runs in seconds through the same code.
SMOKE = {
    "steps": 6,
    "model.size": None,
    "model.vocab_size": None,
    "model.context_length": 64,
    "model.width": 64,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.num_kv_heads": None,
    "model.head_dim": None,
    "model.mlp_dim": None,
    "model.expert_dim": None,
    "data.max_documents": 60,
    "data.vocab_size": 384,
    "data.batch_size": 8,
    "optim.warmup_steps": 2,
    "parallel.data": -1,
    "parallel.fsdp": 1,
    "parallel.tensor": 1,
    "parallel.expert": 1,
    "evals.every_steps": 3,
    "evals.batches": 1,
    "evals.final_batches": 1,
    "evals.new_tokens": 16,
    "checkpoint.save_every_steps": 2,
    "log.every_steps": 1,
}
# Sections and keys that may differ when a run resumes: they change how it goes on,
# not what the saved state means.
RESUMABLE = (
    "steps",
    "evals.",
    "checkpoint.",
    "log.",
    "parallel.",
    "data.mixture",  # what came before must stay as it was: `data.seen` sees to it
    "data.temperature",
    "data.max_epochs",
    "data.prefetch_batches",
    "data.workers",
    "data.cache_dir",
    "model.remat",
    "model.layer_loop",
    "model.kernels",
    "objective.vocab_chunks",
    "optim.learning_rate",
    "optim.matrix_learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.decay_fraction",
    "optim.final_fraction",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.max_nonfinite_steps",
    "optim.accumulate_steps",
)


def default_config() -> ConfigDict:
    """Returns every option at its default, locked against misspelt keys."""
    config = ConfigDict(dataclasses.asdict(ExperimentConfig()), type_safe=False)
    return config.lock()


def variant(config: ConfigDict, arg: str) -> ConfigDict:
    """Returns `config` changed as `arg`, the text after the colon in `--config`, says.

    `size=10m` sets the parameter budget, `smoke` makes everything tiny; both may be
    given, separated by a comma.
    """
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if name == "size" and value:
            config.model.size = value
            for derived in ("width", "num_layers", "num_heads", "num_kv_heads"):
                config.model[derived] = None
            config.model.head_dim = config.model.mlp_dim = None
        elif part == "smoke":
            for key, small in SMOKE.items():
                set_key(config, key, small)
            config.model.window = config.model.window and 16
            pieces = config.optim.accumulate_steps
            config.optim.accumulate_steps = pieces and min(pieces, 2)
            config.evals.function_samples = min(config.evals.function_samples, 4)
        else:
            raise UserError(f"unknown variant {part!r}; known: 'size=10m', 'smoke'")
    return config


def load_experiment(spec: str) -> ConfigDict:
    """Returns the ConfigDict of `FILE.py` or `FILE.py:arg`.

    Raises:
      UserError: when the file is missing, has no `get_config`, or fails; the message
        names the line of the experiment that failed.
    """
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        folder = Path(path).parent
        names = [str(p) for p in folder.glob("**/*.py")] if folder.is_dir() else []
        hint = did_you_mean(path, names) if names else ""
        raise UserError(f"--config={path}: no such file{hint}")
    module_spec = importlib.util.spec_from_file_location("lmx_experiment", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        return module.get_config(arg)
    except UserError:
        raise
    except Exception as error:  # the experiment is the user's code: say where it failed
        message = str(error).splitlines()[0].strip("'\"") if str(error) else ""
        raise UserError(
            f"{path}:{_line_in(error, path)}: {type(error).__name__}: {message}"
        ) from error


def _line_in(error: BaseException, path: str) -> int:
    """Returns the last line of `path` that `error` passed through."""
    line, trace = getattr(error, "lineno", None) or 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def fields(kind: type = ExperimentConfig, prefix: str = "") -> Iterator[tuple]:
    """Yields (dotted key, type, dataclass field) of every option, in schema order."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name], field


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the dotted `key`; raises a `UserError` with the nearest key if unknown."""
    known = [name for name, _, _ in fields()]
    if key not in known:
        raise UserError(f"unknown key --config.{key}{_nearest_key(key, known)}")
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value


def _nearest_key(key: str, known: list[str]) -> str:
    """Returns a hint: the nearest full key, or one with the same last word."""
    same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    if same:
        return f"; did you mean '{same[0]}'?"
    section = key.partition(".")[0] + "."
    inside = [k for k in known if k.startswith(section)]
    hint = did_you_mean(key, known)
    return hint if "did you" in hint or not inside else did_you_mean(key, inside)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted `key` to the value that `text` spells, by the key's type."""
    hints = {name: hint for name, hint, _ in fields()}
    value = parse(text, hints[key], key) if key in hints else text
    set_key(config, key, value)


def parse(text: str, hint: Any, key: str) -> Any:
    """Returns the value of type `hint` that `text` spells on the command line."""
    if text == "None" and type(None) in typing.get_args(hint):
        return None
    hint = _without_none(hint)
    try:
        if hint is int:
            number = float(text.replace("_", ""))
            return int(text) if number != int(number) else int(number)
        if hint is float:
            return float(text)
        if typing.get_origin(hint) is tuple:
            if text[:1] in ("(", "["):
                value = ast.literal_eval(text)
                if not isinstance(value, tuple | list):
                    raise ValueError(text)
                return tuple(value)
            return tuple(part for part in text.split(",") if part)
    except (ValueError, SyntaxError, OverflowError):
        raise _wrong(key, text, hint) from None
    return text


def freeze(config: ConfigDict | Mapping) -> ExperimentConfig:
    """Returns the checked dataclass; a `UserError` names the first bad value."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, Mapping):
        raise UserError(f"a config is a section of options, not {values!r}")
    frozen = freeze_section(values, ExperimentConfig)
    _check(frozen)
    return frozen


def freeze_section(
    values: Mapping, kind: type, prefix: str = "", known: list[str] | None = None
) -> Any:
    """Returns `values` as the dataclass `kind`, each of the type that is written there.

    Raises a `UserError` for a wrong value, and for an unknown key with the nearest of
    `known` (default: those of `kind`).
    """
    hints = typing.get_type_hints(kind)
    known = known or [f"{prefix}{key}" for key, _, _ in fields(kind)]
    for name in values:
        if name not in hints:
            raise UserError(
                f"unknown key {prefix}{name}{_nearest_key(f'{prefix}{name}', known)}"
            )
    checked = {
        name: _checked(value, hints[name], f"{prefix}{name}", known)
        for name, value in values.items()
    }
    return kind(**checked)


def _checked(value: Any, hint: Any, key: str, known: list[str] | None = None) -> Any:
    """Returns `value` if it has the type `hint`; an int does for a float."""
    if value is None and type(None) in typing.get_args(hint):
        return None
    hint = _without_none(hint)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r} must be a section of options")
        return freeze_section(value, typing.cast(type, hint), f"{key}.", known)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r} must be a section of named entries")
        entry = typing.get_args(hint)[1]
        return {str(k): _checked(v, entry, f"{key}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            near = did_you_mean(str(value), typing.get_args(hint))
            raise UserError(f"{key}={value!r} is not an option{near}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list) or not all(
            isinstance(v, str) for v in value
        ):
            raise _wrong(key, value, hint)
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise _wrong(key, value, hint)
    return value


def _without_none(hint: Any) -> Any:
    """Returns X for `X | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _wrong(key: str, value: Any, hint: Any) -> UserError:
    kinds = {int: "a whole number", float: "a number", str: "text"}
    return UserError(f"{key}={value!r} must be {kinds.get(hint, 'a list of names')}")


# Lowest value that each number may take; everything else is checked where it is used.
LOWEST = {
    "seed": 0,
    "steps": 1,
    "model.init_scale": 0,
    "model.rope_base": 1,
    "model.norm_epsilon": 0,
    "adapter.rank": 1,
    "data.vocab_size": 4,
    "data.batch_size": 1,
    "data.prefetch_batches": 0,
    "data.workers": 1,
    "data.max_documents": 2,
    "objective.z_loss": 0,
    "objective.vocab_chunks": 1,
    "optim.learning_rate": 0,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0,
    "optim.accumulate_steps": 1,
    "optim.max_nonfinite_steps": 1,
    "evals.every_steps": 1,
    "evals.batches": 1,
    "evals.final_batches": 1,
    "evals.new_tokens": 1,
    "evals.temperature": 0,
    "evals.function_samples": 0,
    "checkpoint.save_every_steps": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every_steps": 1,
    "log.every_steps": 1,
}


def _check(config: ExperimentConfig) -> None:
    """Raises a `UserError` for numbers out of range and keys that contradict."""
    flat = flatten(config)
    for key, lowest in LOWEST.items():
        if flat[key] is not None and flat[key] < lowest:
            raise UserError(f"{key}={flat[key]} must be at least {lowest}")
    if config.seed >= 2**32:
        raise UserError(f"seed={config.seed} must be below 2**32")
    if not 0 < config.data.validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction={config.data.validation_fraction} must lie "
            "between 0 and 1"
        )
    if config.model.window is not None and "window" not in config.model.pattern:
        raise UserError(
            f"model.window={config.model.window} is used by no layer; name 'window' in "
            "model.pattern, or set model.window to None"
        )
    if config.data.batch_size % (config.optim.accumulate_steps or 1):
        raise UserError(
            f"optim.accumulate_steps={config.optim.accumulate_steps} does not divide "
            f"data.batch_size={config.data.batch_size}"
        )


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """Returns {dotted key: value} of every option."""
    flat = {}
    for key, _, _ in fields():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        flat[key] = value
    return flat


def to_json(config: ExperimentConfig) -> str:
    """Returns the config as indented JSON, which `from_json` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> ExperimentConfig:
    """Returns the config that `to_json` wrote."""
    return freeze(json.loads(text))


def difference(old: ExperimentConfig, new: ExperimentConfig) -> dict[str, tuple]:
    """Returns {key: (old value, new value)} where the two differ."""
    before, after = flatten(old), flatten(new)
    return {k: (before[k], after[k]) for k in before if before[k] != after[k]}
