"""`lmx data trace`: which runs and checkpoints saw how many tokens of a source.

Checkpoints say what they saw; here they are only read. A run belongs to a store if it
was trained on its tokens, wherever the store was then.
"""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import NamedTuple

from lmx.core import config as configs
from lmx.core.errors import DONE, CheckpointError, UserError, pick
from lmx.core.schema import DataConfig
from lmx.data.built import SourceStores, open_built, tokens_digest
from lmx.data.mirror import opened_at
from lmx.data.pipeline import cache_directory
from lmx.data.places import is_url
from lmx.run.arguments import Parser
from lmx.training import manifest

EXAMPLE = """example:
  lmx data trace STORE --source=wiki
  lmx data trace STORE --source=wiki --workdir=runs/first --workdir=/elsewhere/second
"""


class Sighting(NamedTuple):
    """What one checkpoint saw of a source, and of all."""

    run: Path
    step: int
    tokens: int
    total: int


def main(argv: list[str]) -> int:
    """Parses the command line, prints, and returns the exit code."""
    parser = Parser(
        prog="lmx data trace",
        description="Print which runs and checkpoints saw how many tokens of a source.",
        epilog=EXAMPLE,
    )
    parser.add_argument("store", metavar="STORE", help="what `lmx data build` wrote")
    parser.add_argument("--source", required=True, metavar="NAME")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        action="append",
        help="a run to look at; may be repeated (default: runs/*)",
    )
    options, _ = parser.parse_with_overrides(argv)
    path = opened_at(options.store, cache_dir=cache_directory(DataConfig()))
    if is_url(path):  # a store would have been copied
        raise UserError(
            f"there is no built store at {path}; give the URL that one was copied to"
        )
    store = open_built(path)
    names = {source.name: source for source in store.sources}
    source = pick(names, options.source, "source of this store")
    runs = [Path(name) for name in options.workdir or sorted(glob("runs/*"))]
    found, remarks = sightings(
        runs, source.name, digest=tokens_digest(store.sources), store=options.store
    )
    print(report(source, options.store, found))
    print("\n".join(remarks), end="\n" if remarks else "")
    return DONE


def sightings(
    runs: list[Path], source: str, *, digest: str, store: str
) -> tuple[list[Sighting], list[str]]:
    """Returns what the checkpoints of runs say, and what cannot be told of them."""
    found: list[Sighting] = []
    remarks: list[str] = []
    for run in runs:
        try:
            folders = [p for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                remarks.append(f"{run}: cannot be read ({error.strerror})")
            continue
        for folder in sorted(folders, key=lambda path: int(path.name)):
            try:
                facts = manifest.read(folder).facts
            except CheckpointError as error:
                remarks.append(f"{folder}: {error}")
                continue
            if facts.get("data") != digest:
                if _trained_on(run) == _absolute(store):
                    remarks.append(f"{folder}: is of an earlier build of {store}")
            elif "seen" not in facts:
                remarks.append(f"{folder}: is of an lmx that did not count sources")
            else:
                seen, name = facts["seen"], source
                if name not in seen["sources"]:  # one source, the same tokens
                    (name,) = seen["sources"]
                    remarks.append(f"{folder}: saw {source!r} as {name!r}")
                tokens = seen["sources"][name]["tokens"]
                step = int(folder.name)
                found.append(Sighting(run, step, tokens, seen["tokens"]))
    return found, remarks


def report(source: SourceStores, store: str, found: list[Sighting]) -> str:
    """Returns the table, a line for each checkpoint."""
    size = source.train.num_targets
    head = (
        f"{source.name} in {store}: {size:,} tokens to learn, "
        f"{source.train.num_documents:,} documents, licence {source.licence}"
    )
    if not found:
        return f"{head}\nno checkpoint of the runs looked at has seen any of this store"
    width = max(3, *(len(str(sighting.run)) for sighting in found))
    lines = [
        head,
        "",
        f"{'run':<{width}}  {'step':>9}  {'tokens':>15}  {'epochs':>7}  of its tokens",
    ]
    for run, step, tokens, total in found:
        epochs, share = tokens / max(1, size), tokens / max(1, total)
        numbers = f"{step:>9,}  {tokens:>15,}  {epochs:>7.2f}  {share:13.1%}"
        lines.append(f"{run!s:<{width}}  {numbers}")
    return "\n".join(lines)


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())


def _trained_on(run: Path) -> str | None:
    """Returns where the data of a run was, None where that cannot be told."""
    try:
        text = (run / "config.json").read_text("utf-8")
        return _absolute(configs.from_json(text).data.path)
    except (OSError, ValueError, UserError):
        return None
