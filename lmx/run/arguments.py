"""Arguments that commands share: `--config=FILE[:variant]` and `--config.key=value`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ml_collections import ConfigDict

from lmx.core.config import load_experiment, override
from lmx.core.errors import USAGE, UserError, did_you_mean


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


def experiment_config(spec: str, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """Returns the ConfigDict of `--config` with the overrides applied in order."""
    config = load_experiment(spec)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{spec}: get_config returned {type(config).__name__}, not the ConfigDict "
            "of lmx.default_config()"
        )
    for key, text in overrides:
        override(config, key, text)
    return config
