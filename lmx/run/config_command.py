"""The command `lmx config`: show, diff and explain options, without loading JAX."""

from __future__ import annotations

import dataclasses
import typing

from lmx.core.config import (
    default_config,
    difference,
    fields,
    flatten,
    freeze,
    from_json,
    override,
    set_key,
)
from lmx.core.errors import DONE, UserError, pick
from lmx.core.schema import ExperimentConfig
from lmx.run.arguments import Parser, experiment_config

EXAMPLE = """example:
  lmx config show --config=experiments/quickstart.py:size=10m
  lmx config diff --config=experiments/quickstart.py
  lmx config explain model.norm_position
"""


def main(argv: list[str]) -> int:
    """Parses the command line, prints, and returns the exit code."""
    parser = Parser(
        prog="lmx config",
        description="show: every option and its value; diff: what differs from the "
        "defaults, or from --to; explain: what a key, or a section, means.",
        epilog=EXAMPLE,
    )
    parser.add_argument("action", help="show, diff or explain")
    parser.add_argument("key", nargs="?", help="for explain: a key such as model.size")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="experiment file")
    parser.add_argument(
        "--to", metavar="FILE[:VARIANT]|config.json", help="for diff: the other one"
    )
    options, overrides = parser.parse_with_overrides(argv)
    action = pick(ACTIONS, options.action, "action of lmx config")
    print(action(options, overrides))
    return DONE


def show(options, overrides) -> str:
    """Returns every option with its value; with `--config`, derived numbers too."""
    config = chosen(options, overrides)
    if options.config:
        config = derived(config)
    return table({key: (value,) for key, value in flatten(config).items()})


def diff(options, overrides) -> str:
    """Returns the options that differ, with both values."""
    new = chosen(options, overrides)
    changes = difference(other(options.to), new)
    return table(changes) if changes else "no difference"


def explain(options, overrides) -> str:
    """Returns what one key means, or each key of a section."""
    if options.key is None:
        raise UserError("lmx config explain needs a key, such as model.size")
    values = flatten(chosen(options, overrides))
    entries = [
        f"{key} = {values[key]!r}\n  {field.metadata['doc']}\n  type: {spell(hint)}; "
        f"default: {field.default!r}"
        for key, hint, field in fields()
        if key == options.key or key.startswith(options.key + ".")
    ]
    if not entries:
        set_key(default_config(), options.key, None)  # names the nearest key
    return "\n\n".join(entries)


ACTIONS = {"show": show, "diff": diff, "explain": explain}


def chosen(options, overrides) -> ExperimentConfig:
    """Returns the experiment of the command line, or the defaults."""
    if options.config:
        return freeze(experiment_config(options.config, overrides))
    config = default_config()
    for key, text in overrides:
        override(config, key, text)
    return freeze(config)


def other(spec: str | None) -> ExperimentConfig:
    """Returns what to compare with: an experiment, a config.json, or the defaults."""
    if spec is None:
        return freeze(default_config())
    if spec.endswith(".json"):
        try:
            with open(spec, encoding="utf8") as file:
                return from_json(file.read())
        except (OSError, ValueError) as error:
            raise UserError(f"--to={spec} cannot be read: {error}") from error
    return freeze(experiment_config(spec, []))


def derived(config: ExperimentConfig) -> ExperimentConfig:
    """Returns `config` with the shape that its size stands for."""
    from lmx.models.sizes import resolve

    vocab_size = config.model.vocab_size or config.data.vocab_size
    return dataclasses.replace(config, model=resolve(config.model, vocab_size))


def table(rows: dict[str, tuple]) -> str:
    """Returns one line per key; two values are joined by an arrow."""
    width = max(map(len, rows))
    return "\n".join(
        f"{key:<{width}}  {' → '.join(map(repr, values))}"
        for key, values in rows.items()
    )


def spell(hint) -> str:
    """Returns a type as a person would write it."""
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "tuple of text"
    if arguments := typing.get_args(hint):
        return " | ".join(spell(argument) for argument in arguments)
    return "None" if hint is type(None) else hint.__name__
