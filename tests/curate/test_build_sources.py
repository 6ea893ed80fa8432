"""Where a build's sources are makes no difference, and nothing of them is dropped
without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import fsspec
import pytest

from lmx.core.errors import DataError, UserError
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Processes
from lmx.data.built import Built, open_built

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st")]


def text(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=60))


def built(source: dict, out: Path, **changes) -> Built:
    made = default_build_config()
    made.sources = {"a": {"licence": "CC0-1.0", "uses": ("train",), **source}}
    made.vocab_size = 300
    made.update(changes)
    build(
        build_config(made),
        out,
        runner=Processes(1),
        stage=lambda name, total: lambda done: None,
    )
    return open_built(out)


def names(store: Built) -> set[str]:
    return {*store.names("train", "a"), *store.names("validation", "a")}


def dropped(store: Built) -> dict[str, list[str]]:
    """Returns the names of the documents that were left out, by reason."""
    card = json.loads((store.directory / "card.json").read_text())
    found = card["sources"]["a"]
    counts = found["counts"]
    gone = sum(about["documents"] for about in found["dropped"].values())
    assert counts["records"] == counts["documents_out"] + gone
    return {
        reason: [example["name"] for example in about["examples"]]
        for reason, about in found["dropped"].items()
    }


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for number in range(20):
        (folder / "sub" / f"{number:02d}.txt").write_text(text(number))
    rows = [json.dumps({"text": text(100 + n), "n": n}) for n in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def digests(store: Built) -> dict[str, str]:
    return {
        str(path.relative_to(store.directory)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for split in ("train", "validation", "tokenizer")
        for path in sorted((store.directory / split).rglob("*"))
        if path.is_file()
    }


def test_a_build_from_a_url_is_that_from_the_same_files(corpus, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(f"{corpus}/", "/build_sources/", recursive=True)
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": text(3)}))
    memory.put(str(tmp_path / "test.jsonl"), "/build_test.jsonl")
    removals = f"a/rows.jsonl#1\n{hashlib.sha256(text(5).encode()).hexdigest()}\n"
    (tmp_path / "removals").write_text(removals)
    memory.pipe("/build_removals", removals.encode())
    found = []
    for where, test, removed in (
        (str(corpus), str(tmp_path / "test.jsonl"), str(tmp_path / "removals")),
        (
            "memory://build_sources",
            "memory://build_test.jsonl",
            "memory://build_removals",
        ),
    ):
        out = tmp_path / f"store{len(found)}"
        lists = {"removals": removed, "evaluations": {"test": {"path": test}}}
        found.append(built({"path": where}, out, **lists))
    assert digests(found[0]) == digests(found[1])
    assert len(digests(found[0])) > 8
    assert dropped(found[0]) == dropped(found[1])
    assert set(dropped(found[0])) == {"removed", "leak of test"}


def test_what_is_no_file_is_counted_and_named_on_the_card(corpus, tmp_path):
    (corpus / "loop").symlink_to(corpus)
    (corpus / "gone.txt").symlink_to("nowhere")
    os.mkfifo(corpus / "pipe.txt")
    store = built({"path": str(corpus)}, tmp_path / "store")
    assert len(names(store)) == 40
    assert dropped(store) == {"no file": ["gone.txt", "loop", "pipe.txt"]}
    assert "a link to a folder" in (store.directory / "card.html").read_text()
    # Of a pattern, what it does not fit is not missed; but a folder may have held some.
    store = built({"path": str(corpus), "files": "*.jsonl"}, tmp_path / "two")
    assert dropped(store) == {"no file": ["loop"]}


def test_a_pattern_for_a_file_is_refused(corpus, tmp_path):
    source = {"path": str(corpus / "rows.jsonl"), "files": "*.txt"}
    with pytest.raises(UserError, match=r"sources\.a\.files='\*\.txt' is for folders"):
        built(source, tmp_path / "store")


def test_a_url_where_nothing_is_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"sources\.a\.path=.*nothing is there"):
        built({"path": "memory://nowhere/at/all"}, tmp_path / "store")
