"""The command `lmx data build`: from a list of sources to a store of tokens."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lmx.core.config import fields, parse
from lmx.core.errors import DONE, UserError, did_you_mean, pick
from lmx.curate.config import BuildConfig, EvaluationConfig, SourceConfig, build_config
from lmx.run.arguments import Parser, load_config

EXAMPLE = """example:
  lmx data build --config=experiments/data/python_and_manuals.py --out=STORE
  lmx train --config=experiments/quickstart.py --config.data.path=STORE

A build that was interrupted goes on when the same command is given again.
"""
SECTIONS = {"sources": SourceConfig, "evaluations": EvaluationConfig}


def main(argv: list[str]) -> int:
    """Parses the command line, builds, and returns the exit code."""
    parser = Parser(
        prog="lmx data build",
        description="read → normalise → filter → deduplicate → decontaminate → "
        "tokenize → store, with a data card.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--out", required=True, metavar="STORE", help="a new folder")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument(
        "--runner", default="processes", help="'processes' here, or Apache 'beam'"
    )
    parser.add_argument(
        "--beam-options", default="", metavar="'--runner=… …'", help="for Apache Beam"
    )
    options, overrides = parser.parse_with_overrides(argv)
    default = "lmx.curate.config.default_build_config()"
    config = load_config(options.config, default=default)
    for key, text in overrides:
        override(config, key, text)
    checked = build_config(config)
    make = pick({"processes": processes, "beam": beam}, options.runner, "runner")
    out = Path(options.out).absolute()
    from lmx.curate.build import build
    from lmx.curate.rights import remarks

    with Stages() as stages:
        new = build(checked, out, runner=make(options), stage=stages.begin)
    done = "is built" if new else "was built already, from the same config and files"
    print(f"{out} {done}; its data card is {out / 'card.html'}")
    card = json.loads((out / "card.json").read_text("utf-8"))
    for remark in remarks(card["refusals"]):
        print(remark, file=sys.stderr)
    print(f"next: lmx data show {options.out} --row=0", file=sys.stderr)
    return DONE


def processes(options) -> Any:
    """Returns the runner on this machine."""
    from lmx.curate.runner import Processes

    if options.beam_options:
        raise UserError("--beam-options is for --runner=beam")
    return Processes(options.workers)


def beam(options) -> Any:
    """Returns the runner of Apache Beam."""
    from lmx.curate.runner import Beam

    if options.workers is not None:
        raise UserError("--workers is for --runner=processes; see --beam-options")
    return Beam(options.beam_options.split())


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key to the value that `text` spells."""
    *path, name = key.split(".")
    plain = {name: hint for name, hint, _ in fields(BuildConfig)}
    if not path and key in plain and typing.get_origin(plain[key]) is not dict:
        config[key] = parse(text, plain[key], key)
        return
    known = [k for k in plain if typing.get_origin(plain[k]) is not dict]
    known += [
        f"{section}.{entry}"
        for section in ("filters", *SECTIONS)
        for entry in config[section]
    ]
    if path and key in known:
        names = ", ".join(settings_of(path[0], name))
        raise UserError(
            f"--config.{key}={text}: a value is for one of its settings, as in "
            f"--config.{key}.SETTING={text}; they are: {names}"
        )
    if len(path) != 2 or ".".join(path) not in known:
        raise UserError(f"unknown key --config.{key}{did_you_mean(key, known)}")
    entry = config[path[0]][path[1]]
    if path[0] == "filters":
        try:
            entry[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            entry[name] = text
        return
    hints = {name: hint for name, hint, _ in fields(SECTIONS[path[0]])}
    if name not in hints:
        raise UserError(f"unknown key --config.{key}{did_you_mean(name, hints)}")
    entry[name] = parse(text, hints[name], key)


def settings_of(section: str, name: str) -> list[str]:
    """Returns the names of the settings of a filter, a source or an evaluation."""
    if section in SECTIONS:
        return [name for name, _, _ in fields(SECTIONS[section])]
    from lmx.curate.filters import FILTERS

    return [*inspect.signature(pick(FILTERS, name, "filter")).parameters]


class Stages:
    """A progress bar for each stage; plain lines where there is no terminal."""

    def __enter__(self) -> Stages:
        from rich.console import Console
        from rich.progress import Progress

        self._console = Console(stderr=True)
        self._bars = Progress(console=self._console, transient=False)
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def begin(self, name: str, total: int) -> Callable[[int], None]:
        """Starts a stage; what it returns is called with the work done since."""
        if not self._console.is_terminal:
            print(f"{name} …", file=sys.stderr, flush=True)
            return lambda done: None
        task = self._bars.add_task(name, total=max(1, total))
        return lambda done: self._bars.advance(task, done)
