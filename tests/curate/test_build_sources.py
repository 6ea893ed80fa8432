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
from lmx.curate import records
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.rights import remarks
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


def test_opted_out_documents_are_none_of_the_store(tmp_path):
    rows = [
        {"text": text(n), "link": f"https://{'no' if n % 3 else 'www.yes'}.org/{n}"}
        for n in range(60)
    ]
    rows += [{"text": text(100), "link": None}, {"text": text(101)}]
    rows += [{"text": text(102), "link": "http://[bad"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "optouts").write_text("YES.org\n")
    source = {"path": str(path), "url": "{link}"}
    changes = {"optouts": str(tmp_path / "optouts"), "bad_records": 0.1}
    store = built(source, tmp_path / "store", **changes)
    assert names(store) == {
        f"rows.jsonl#{n + 1}" for n in range(61) if n % 3 or n == 60
    }
    assert dropped(store) == {
        "opted out": ["rows.jsonl#1", "rows.jsonl#4", "rows.jsonl#7"],
        "damaged": ["rows.jsonl#62", "rows.jsonl#63"],  # no link, and one that is none
    }
    card = json.loads((store.directory / "card.json").read_text())
    assert card["sources"]["a"]["dropped"]["opted out"]["documents"] == 20
    assert card["refusals"]["addresses"] == {"a": 61}
    assert remarks(card["refusals"]) == []
    # Without addresses the list has no effect, and that is told.
    store = built({"path": str(path)}, tmp_path / "two", **changes)
    assert len(names(store)) == 63
    card = json.loads((store.directory / "card.json").read_text())
    assert "no document has an address" in remarks(card["refusals"])[0]


def test_lines_of_the_removal_list_that_are_of_no_document_are_told(corpus, tmp_path):
    upper = hashlib.sha256(text(5).encode()).hexdigest().upper()
    lines = ["a/sub/03.txt", upper, "a/sub/99.txt", "b/x", "0" * 64]
    (tmp_path / "list").write_text("\n".join(lines))
    store = built(
        {"path": str(corpus)}, tmp_path / "store", removals=str(tmp_path / "list")
    )
    assert dropped(store) == {"removed": ["sub/03.txt", "sub/05.txt"]}
    card = json.loads((store.directory / "card.json").read_text())
    assert card["refusals"]["removals"] == {
        "lines": 5,
        "unmatched": 3,
        "such_as": ["0" * 64, "a/sub/99.txt", "b/x"],
    }
    (told,) = remarks(card["refusals"])
    assert told.startswith("removals: 3 of 5 lines are of no document")
    assert "3 of no document" in (store.directory / "card.html").read_text()


def answer(url: str, body: str, *headers: str, kind: str = "text/html") -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", *headers, "", body]
    block = "\r\n".join(lines).encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        f"WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def test_an_archive_is_built_of_pages_that_nobody_refuses(tmp_path, monkeypatch):
    pytest.importorskip("resiliparse")
    folder = tmp_path / "web"
    folder.mkdir()
    content = [
        answer(f"http://{host}.org/{n}", f"<title>T</title><p>{text(7 * h + n)}")
        for h, host in enumerate(("free", "mine", "listed"))
        for n in range(7)
    ]
    meta, search = "<meta name=robots content=noai>", "X-Robots-Tag: max-snippet: 3"
    content += [
        answer("http://free.org/meta", f"{meta}<p>{text(800)}"),
        answer("http://free.org/head", f"<p>{text(801)}", "TDM-Reservation: 1"),
        answer("http://free.org/search", f"<p>{text(802)}", search),
        answer("http://free.org/x.png", "png", kind="image/png"),
    ]
    (folder / "a.warc").write_bytes(b"".join(content))
    # The rules of a host may be in another shard than its pages, and come later.
    rules = "User-agent: GPTBot\nDisallow: /\nUser-agent: *\nDisallow: /meta"
    robots = answer("http://mine.org/robots.txt", rules, kind="text/plain")
    (folder / "b.warc").write_bytes(robots)
    (tmp_path / "optouts").write_text("listed.org")
    monkeypatch.setattr(records, "SHARD_BYTES", 1)
    source = {"path": str(folder), "text": "{title}: {text}"}
    store = built(source, tmp_path / "store", optouts=str(tmp_path / "optouts"))
    assert len(names(store)) == 8
    about = json.loads((store.directory / "card.json").read_text())["sources"]["a"]
    assert {why: d["documents"] for why, d in about["dropped"].items()} == {
        "robots.txt": 7,
        "opted out": 7,
        "page says no": 2,
        "no page": 2,
    }
    for entry in about["dropped"].values():
        assert [example["text"] for example in entry["examples"]].count("") >= 2
    store = built(source, tmp_path / "two", crawlers=())
    assert set(dropped(store)) == {"no page"}
    assert len(names(store)) == 24


def test_a_source_of_empty_files_is_said_to_be_one(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match=r"of 0 \(its files are empty\)"):
        built({"path": str(tmp_path / "none.jsonl")}, tmp_path / "store")


def test_a_build_without_a_text_to_learn_from_says_what_to_do(tmp_path):
    (tmp_path / "one.txt").write_text(text(1))
    with pytest.raises(DataError, match="hold out fewer"):
        built(
            {"path": str(tmp_path / "one.txt")},
            tmp_path / "store",
            validation_fraction=0.999999,
        )
