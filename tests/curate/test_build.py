"""A whole build on small sources with planted faults, and what its store holds."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest

from lmx.core.config import load_experiment
from lmx.core.errors import DataError, StorageError, UserError
from lmx.core.workdir import claim
from lmx.curate import keys, records
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Beam, Processes
from lmx.data import readers, streams
from lmx.data.built import open_built
from lmx.data.files import list_files

REPOSITORY = Path(__file__).parents[2]
EXPERIMENTS = REPOSITORY / "experiments" / "data"
WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st")]


def text(seed: int, words: int = 120) -> str:
    drawn = random.Random(seed)
    lines = [" ".join(drawn.choices(WORDS, k=12)) for _ in range(words // 12)]
    return "\n".join(f"{line.capitalize()}." for line in lines)


def changed(original: str, seed: int) -> str:
    """Returns a near duplicate: one word of 120 is another."""
    words = original.split(" ")
    words[random.Random(seed).randrange(len(words))] = "otherwise"
    return " ".join(words)


@pytest.fixture
def folder(tmp_path):
    """Two sources: 'web' has copies of 'books', its own, near ones, and damage."""
    books, web = tmp_path / "books", tmp_path / "web"
    books.mkdir()
    web.mkdir()
    for number in range(40):
        (books / f"{number:02d}.txt").write_text(text(number))
    rows = [{"text": text(1000 + n), "id": n} for n in range(60)]
    rows += [{"text": text(n).upper(), "id": 100 + n} for n in range(5)]  # exact
    rows += [{"text": changed(text(n), n), "id": 200 + n} for n in range(5, 10)]  # near
    rows += [{"text": "too short", "id": 300}]
    rows += [{"text": text(2000) + "\n" + text(77, 24), "id": 400}]  # a leak
    lines = [json.dumps(row) for row in rows] + ["{"]
    (web / "a.jsonl").write_text("\n".join(lines[:40]) + "\n")
    (web / "b.jsonl").write_text("\n".join(lines[40:]) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": text(77, 24)}))
    return tmp_path


def config(folder, **changes):
    made = default_build_config()
    made.sources = {
        "books": {
            "path": str(folder / "books"),
            "licence": "CC0-1.0",
            "uses": ("train", "commercial"),
        },
        "web": {
            "path": str(folder / "web"),
            "licence": "CC-BY-4.0",
            "uses": ("train",),
        },
    }
    made.filters = {"length": {"least": 20}}
    made.evaluations = {
        "quiz": {"path": str(folder / "test.jsonl"), "text": "{question}"}
    }
    made.bad_records = 0.02
    made.vocab_size = 300
    made.update(changes)
    return build_config(made)


def quiet(name, total):
    return lambda done: None


def built(config, out, *, workers=1):
    build(config, out, runner=Processes(workers), stage=quiet)
    return open_built(out)


def digest(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def test_planted_faults_are_left_out_and_the_card_says_why(folder):
    store = built(config(folder), folder / "store")
    names = {
        source: set(store.names("train", source) + store.names("validation", source))
        for source in ("books", "web")
    }
    assert names["books"] == {f"{n:02d}.txt" for n in range(40)}
    assert len(names["web"]) == 60
    card = json.loads((folder / "store" / "card.json").read_text())
    dropped = card["sources"]["web"]["dropped"]
    assert {reason: d["documents"] for reason, d in dropped.items()} == {
        "damaged": 1,
        "length": 1,
        "leak of quiz": 1,
    }
    assert card["duplicates"]["exact"]["between"] == [
        {"dropped": "web", "kept": "books", "documents": 5}
    ]
    assert card["duplicates"]["near"]["between"] == [
        {"dropped": "web", "kept": "books", "documents": 5}
    ]
    page = (folder / "store" / "card.html").read_text()
    assert "leak of quiz" in page
    assert "CC-BY-4.0" in page
    counts = card["sources"]["web"]["counts"]
    gone = sum(d["documents"] for d in dropped.values())
    assert counts["records"] == counts["documents_out"] + gone


def test_the_preferred_source_keeps_its_copies(folder):
    store = built(config(folder, prefer=("web",)), folder / "store")
    names = store.names("train", "books") + store.names("validation", "books")
    assert len(names) == 30
    assert len(store.names("train", "web") + store.names("validation", "web")) == 70


def test_what_was_all_said_before_is_counted_as_emptied(folder):
    half = text(0)[: len(text(0)) // 2].rsplit("\n", 1)[0]
    (folder / "books" / "98.txt").write_text(half)
    store = built(config(folder, repeated_words=20), folder / "store")
    assert "98.txt" not in texts(store, "books")
    card = json.loads((folder / "store" / "card.json").read_text())
    assert card["repeats"]["sources"]["books"]["emptied"] == 1


def test_masks_do_not_hide_a_leak(folder):
    secret = f"{text(3000, 12)} Write to someone@example.org about it."
    (folder / "test.jsonl").write_text(json.dumps({"question": secret}))
    (folder / "books" / "97.txt").write_text(f"{text(97)}\n{secret}")
    store = built(config(folder, masks=("email",)), folder / "store")
    assert "97.txt" not in texts(store, "books")


def test_a_source_that_grows_while_it_is_read_is_refused(folder):
    entries = list_files(folder / "web" / "a.jsonl")
    found = readers.read(entries, whole_files=True)
    next(found)
    with open(folder / "web" / "a.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(found)


def test_two_builds_in_one_process_have_their_own_lists(folder):
    removals = folder / "removals.txt"
    found = []
    for number in (0, 1):
        removals.write_text(f"books/{number:02d}.txt\n")
        made = config(folder, removals=str(removals))
        found.append(texts(built(made, folder / f"store{number}"), "books"))
    assert [{"00.txt", "01.txt"} - set(names) for names in found] == [
        {"00.txt"},
        {"01.txt"},
    ]


def test_two_builders_of_one_store_are_refused(folder):
    with (
        claim(folder / ".store.building", option="--out"),
        pytest.raises(StorageError, match=r"in use by .* choose another --out"),
    ):
        built(config(folder), folder / "store")


def test_a_repeated_passage_is_cut_from_all_but_the_first(folder):
    passage = text(5000, 60)
    (folder / "books" / "00.txt").write_text(f"{text(0)}\n{passage}")
    (folder / "books" / "99.txt").write_text(f"{text(99)}\n{passage}\n{text(98)}")
    whole = built(config(folder), folder / "whole")
    store = built(config(folder, repeated_words=40), folder / "store")
    assert texts(whole, "books")["99.txt"].count(passage) == 1
    found = texts(store, "books")
    assert found["00.txt"] == f"{text(0)}\n{passage}"
    assert found["99.txt"].split() == f"{text(99)}\n{text(98)}".split()
    card = json.loads((folder / "store" / "card.json").read_text())
    cut = card["repeats"]["sources"]["books"]
    assert cut["documents"] == 1
    assert len(passage) <= cut["characters"] <= len(passage) + 2


def texts(store, source: str) -> dict[str, str]:
    """Returns the text of each document of a source, from its tokens."""
    stores = next(s for s in store.sources if s.name == source)
    return {
        name: store.tokenizer.decode(getattr(stores, split).document(index)[1:-1])
        for split in ("train", "validation")
        for index, name in enumerate(store.names(split, source))
    }


def test_the_text_in_the_store_is_the_text_that_went_in(folder):
    store = built(config(folder), folder / "store")
    found = texts(store, "books")
    assert found == {f"{n:02d}.txt": text(n) for n in range(40)}


def test_the_store_does_not_depend_on_who_builds_it(folder, monkeypatch):
    one = built(config(folder, repeated_words=40), folder / "one")
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    monkeypatch.setattr(keys, "PART_KEYS", 500)
    two = built(config(folder, repeated_words=40), folder / "two", workers=3)
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
    assert digest(folder / "one") == digest(folder / "two")


def test_beam_builds_the_same_store(folder):
    pytest.importorskip("apache_beam")
    made = config(folder, repeated_words=40)
    built(made, folder / "here")
    build(made, folder / "beam", runner=Beam(), stage=quiet)
    assert digest(folder / "here") == digest(folder / "beam")


def test_too_many_damaged_records_stop_a_build_by_name(folder):
    with pytest.raises(
        DataError, match=r"web: 1 of 73 records .*b\.jsonl#33: not JSON"
    ):
        built(config(folder, bad_records=0.0), folder / "store")
    assert not (folder / "store").exists()


def test_a_source_with_nothing_left_stops_a_build(folder):
    with pytest.raises(
        DataError, match=r"books has no document left of 40 \(length 40"
    ):
        built(config(folder, filters={"length": {"least": 900}}), folder / "store")


def test_what_is_on_the_removal_list_is_not_in_the_store(folder):
    gone = hashlib.sha256(text(3).encode()).hexdigest()
    (folder / "removals.txt").write_text(f"books/00.txt\n{gone}\n")
    removals = str(folder / "removals.txt")
    store = built(config(folder, removals=removals), folder / "store")
    names = store.names("train", "books") + store.names("validation", "books")
    assert {f"{n:02d}.txt" for n in range(40)} - set(names) == {"00.txt", "03.txt"}


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda p: p.stem)
def test_every_build_of_experiments_is_a_checked_config(path, tmp_path):
    arg = "smoke" if "smoke" in path.read_text() else str(tmp_path)
    assert build_config(load_experiment(f"{path}:{arg}")).sources


def test_the_experiment_that_needs_no_files_builds(tmp_path):
    path = EXPERIMENTS / "python_and_manuals.py"
    checked = build_config(load_experiment(f"{path}:smoke"))
    store = built(checked, tmp_path / "store")
    assert [source.name for source in store.sources] == ["code", "manuals"]
    assert all(source.train.num_documents for source in store.sources)


@pytest.mark.parametrize("lines", ["", '{"question": "too short"}', '{"q": "x"}', "{"])
def test_an_evaluation_of_which_nothing_can_be_found_is_refused(folder, lines):
    (folder / "test.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"evaluations\.quiz"):
        built(config(folder), folder / "store")


def test_a_long_text_is_cut_alike_whatever_of_it_is_held(folder, monkeypatch):
    path = folder / "long.txt.gz"
    path.write_bytes(gzip.compress(("wörd " * 300 + "\n\n").encode() * 2000))
    whole = list(readers.read(list_files(path), whole_files=False))
    monkeypatch.setattr(streams, "LONGEST_LINE", 1 << 20)
    assert list(readers.read(list_files(path), whole_files=False)) == whole
    assert len(whole) > 100
    path.write_bytes(gzip.compress(b"word " * (1 << 20) + b"\xff"))
    with pytest.raises(DataError, match="is not UTF-8 text after byte"):
        list(readers.read(list_files(path), whole_files=False))


def test_a_name_that_is_no_data_set_is_refused_with_the_nearest(folder):
    made = config(folder).sources["web"]
    sources = {"web": {**dataclasses.asdict(made), "path": "python_stdlb"}}
    with pytest.raises(DataError, match="python_stdlib"):
        built(config(folder, sources=sources), folder / "store")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"filters": {"lenght": {}}}, "unknown filter 'lenght'; did you mean 'length'"),
        (
            {"filters": {"length": {"last": 3}}},
            "no setting 'last'; did you mean 'least'",
        ),
        ({"masks": ("mail",)}, "unknown mask 'mail'"),
        ({"uses": ("commercial",)}, r"web \(CC-BY-4.0\) does not allow commercial"),
        ({"removals": "/nowhere"}, "removals"),
        ({"filters": {"length": {"least": "abc"}}}, "filters.length: .*abc"),
        ({"filters": {"length": {"least": {1}}}}, "filters: .*what JSON can hold"),
        ({"near_similarity": 1.0}, "near_similarity=1.0 must lie between"),
        ({"validation_fraction": 1.0}, "leaves nothing to train on"),
    ],
)
def test_mistakes_are_named_before_any_work(folder, changes, told):
    with pytest.raises(UserError, match=told):
        built(config(folder, **changes), folder / "store")
    assert sorted(path.name for path in folder.iterdir()) == [
        "books",
        "test.jsonl",
        "web",
    ]


def test_a_store_that_is_there_is_not_overwritten(folder):
    (folder / "store").mkdir()
    with pytest.raises(UserError, match="is there already"):
        built(config(folder), folder / "store")
