"""Arguments that commands share: `--config=FILE[:variant]` and `--config.key=value`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lmx.core.config import load_experiment, override
from lmx.core.errors import USAGE, DataError, UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the nearest option."""

    def __init__(self, **kwargs):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str):
        """Exits with the usage code after one line."""
        self.exit(USAGE, f"{self.prog}: {message}; try {self.prog} --help\n")

    def parse_with_overrides(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """Returns the options and the (key, text) of every `--config.key=text`."""
        plain, overrides, rest = [], [], list(argv)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--config."):
                plain.append(word)
                continue
            key, equals, text = word.removeprefix("--config.").partition("=")
            if not equals:
                if not rest:
                    self.error(f"{word} needs a value: {word}=VALUE")
                text = rest.pop(0)
            overrides.append((key, text))
        options, unknown = self.parse_known_args(plain)
        if unknown:
            known = [s for action in self._actions for s in action.option_strings]
            name = unknown[0].partition("=")[0]
            raise UserError(
                f"unknown argument {unknown[0]!r}{did_you_mean(name, known)}"
            )
        return options, overrides


def add_sampling(parser: argparse.ArgumentParser, *, temperature: str = "0.7") -> None:
    """Adds the options that decide how tokens are drawn, with the default of one."""
    add = parser.add_argument
    add("--temperature", type=float, help=f"0 is greedy (default {temperature})")
    add("--top_k", "--top-k", type=int, help="keep the k most probable tokens")
    add("--top_p", "--top-p", type=float, help="keep this share of probability")
    add("--min_p", "--min-p", type=float, help="drop below this share of the best")
    add(
        "--repetition_penalty",
        "--repetition-penalty",
        type=float,
        help="above 1 avoids tokens already there",
    )
    add("--beams", type=int, help="above 1 searches for the most probable text")
    add(
        "--length_penalty",
        "--length-penalty",
        type=float,
        help="of beams: above 0 favours longer texts (default 1)",
    )
    add("--max_new_tokens", "--max-new-tokens", type=int, help="(default 128)")
    add("--stop", action="append", default=[], help="end at this text; may be repeated")
    add("--seed", type=int, help="decides the draws (default 0)")


def add_step(parser: argparse.ArgumentParser) -> None:
    """Adds the option that picks a checkpoint of the workdir."""
    parser.add_argument(
        "--step", type=int, help="checkpoint to use (default: the newest)"
    )


def utf8(text: str) -> str:
    """Returns `text`, the type of an option, unless its bytes were not UTF-8."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not UTF-8 text") from None
    return text


def read_whole(name: str, option: str) -> str:
    """Returns the text of the file `name`, '-' for stdin, which `option` asked for.

    Raises:
      DataError: it cannot be read or is not UTF-8.
    """
    try:
        whole = sys.stdin.read() if name == "-" else Path(name).read_text("utf8")
    except OSError as error:
        raise DataError(f"{option}={name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{option}={name} is not UTF-8 text: {error.reason}; convert it"
        ) from error
    return whole


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Adds the option that decides the bits of the weights that write."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="write with weights of 8 or 4 bits: faster, a little less exact",
    )


def chosen_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampling options that were given, by name."""
    names = (
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("beams", "length_penalty", "max_new_tokens", "seed"),
    )
    chosen = {name: getattr(options, name) for name in names}
    sampling = {name: value for name, value in chosen.items() if value is not None}
    return {**sampling, "stop": tuple(options.stop)}


def experiment_config(spec: str, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """Returns the ConfigDict of `--config` with the overrides applied in order."""
    config = load_config(spec, default="lmx.default_config()")
    for key, text in overrides:
        override(config, key, text)
    return config


def load_config(spec: str, *, default: str) -> ConfigDict:
    """Returns the ConfigDict of a file, which is to edit that of `default`."""
    config = load_experiment(spec)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{spec}: get_config returned {type(config).__name__}, not the ConfigDict "
            f"of {default}"
        )
    return config
