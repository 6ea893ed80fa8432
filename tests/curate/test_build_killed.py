"""A build that is killed at any moment goes on, and ends as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmx.core.errors import UserError
from lmx.curate import records
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Beam, Processes, Runner

REPOSITORY = Path(__file__).parents[2]
WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st")]

# Where the process is killed: at a call of a function, before it or after it.
MOMENTS = (
    ("lmx.curate.build:_clean", 3, "after"),
    ("lmx.curate.duplicates:sign", 2, "after"),
    ("lmx.curate.repeats:cut_piece", 2, "after"),
    ("lmx.curate.encoding:make_tokenizer", 1, "before"),
    ("lmx.inputs.tokenizers:Tokenizer.save", 1, "after"),  # in an unfinished folder
    ("lmx.curate.encoding:encode_piece", 2, "after"),
    ("lmx.data.store:write_examples", 1, "before"),  # a split of conversations
    ("lmx.data.built:write_part", 2, "after"),  # all but its tally
    ("lmx.data.built:join_stores", 3, "after"),
    ("lmx.data.built:create", 1, "after"),
    ("lmx.curate.build:publish", 1, "after"),  # the store has its name
)

KILLED = f"""
import functools, importlib, importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("here", {__file__!r})
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
folder, place, count, when = sys.argv[1:]
module, _, names = place.partition(":")
*owners, name = names.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
real, calls = getattr(owner, name), []
def killing(*args, **kwargs):
    calls.append(0)
    if len(calls) == int(count):
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(owner, name, killing)
here.records.SHARD_BYTES = 2000
here.built(Path(folder), "store")
"""


def text(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture
def folder(tmp_path):
    """Texts with copies and repeated passages, and conversations."""
    rows = [{"text": f"{text(n)} {text(n % 3, 60)}"} for n in range(20)]
    rows += [{"text": rows[n]["text"].upper()} for n in range(3)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": text(100 + n, 12)},
                {"role": "assistant", "content": text(200 + n, 12)},
            ]
        }
        for n in range(40)
    ]
    for name, found in (("texts", rows), ("chats", chats)):
        (tmp_path / name).mkdir()
        for number in range(4):
            lines = [json.dumps(row) + "\n" for row in found[number::4]]
            (tmp_path / name / f"{number}.jsonl").write_text("".join(lines))
    return tmp_path


def built(folder: Path, name: str, *, runner: Runner | None = None, **changes) -> bool:
    made = default_build_config()
    rights = {"licence": "CC0-1.0", "uses": ("train",)}
    made.sources = {
        "texts": {"path": str(folder / "texts"), **rights},
        "chats": {"path": str(folder / "chats"), "format": "messages", **rights},
    }
    made.repeated_words = 40
    made.vocab_size = 300
    made.validation_fraction = 0.2
    made.update(changes)
    runner = runner or Processes(1)
    stage = lambda name, items: lambda done: None  # noqa: E731 - as the caller has it
    return build(build_config(made), folder / name, runner=runner, stage=stage)


def digest(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def done(folder: Path) -> dict[Path, int]:
    """Returns what stages have left, and when it was written."""
    patterns = (
        "clean/*.json",
        "signatures/*.bin",
        "cuts/*.parquet",
        "tokenizer/*.json",
        "tokens/*/tally.json",
        "store/manifest.json",
    )
    (place,) = folder.glob(".store.building/????????????????")
    return {
        path: path.stat().st_mtime_ns
        for pattern in patterns
        for path in place.glob(pattern)
    }


def kill(folder: Path, moment: tuple[str, int, str]) -> None:
    place, count, when = moment
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), place, str(count), when],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def test_killed_at_every_stage_it_goes_on_and_ends_the_same(folder, monkeypatch):
    built(folder, "whole")
    before: dict[Path, int] = {}
    for moment in MOMENTS:
        kill(folder, moment)
        now = done(folder)
        lost = set(before) - set(now)
        assert all(path.parent.name == "store" for path in lost)  # has its name
        kept = {path: time for path, time in now.items() if path in before}
        assert kept.items() <= before.items()  # what was done was not done again
        before = now
        assert (folder / "store").exists() == (moment == MOMENTS[-1])
    assert len(before) >= 30
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    assert not built(folder, "store", runner=Processes(2))  # nothing was left to build
    assert digest(folder / "store") == digest(folder / "whole")
    assert not list(folder.glob(".store.building"))


@pytest.mark.parametrize("moment", MOMENTS[7:8], ids=lambda moment: moment[0])
def test_other_processes_go_on_with_the_tokens(folder, monkeypatch, moment):
    built(folder, "whole")
    kill(folder, moment)
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    assert built(folder, "store", runner=Processes(2))
    assert digest(folder / "store") == digest(folder / "whole")
    assert not list(folder.glob(".*"))


def test_beam_goes_on_with_what_was_killed_here(folder, monkeypatch):
    pytest.importorskip("apache_beam")
    built(folder, "whole")
    kill(folder, MOMENTS[7])
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    assert built(folder, "store", runner=Beam())
    assert digest(folder / "store") == digest(folder / "whole")


def test_another_store_under_the_name_is_not_taken_for_the_build_s(folder, monkeypatch):
    built(folder, "other", vocab_size=290)
    kill(folder, MOMENTS[-1])
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    (folder / "store").rename(folder / "mine")
    (folder / "other").rename(folder / "store")
    with pytest.raises(UserError, match="is there already"):
        built(folder, "store")
    (folder / "store").rename(folder / "other")
    (folder / "mine").rename(folder / "store")
    assert not built(folder, "store")
