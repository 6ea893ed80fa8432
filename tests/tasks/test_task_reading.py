"""Files → items: the split is fixed, shots are never scored, errors name the record."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest

from lmx.core.errors import DataError, UserError
from lmx.tasks import TASKS
from lmx.tasks.reading import draw, read, share, shots

BOOLQ = TASKS["boolq"]


def rows(count, *, start=0):
    return [
        {"question": f"is {i} even", "passage": f"It is {i}.", "answer": i % 2 == 0}
        for i in range(start, start + count)
    ]


def write(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(
        gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode()
    )


def test_a_folder_has_its_files_found_by_name_and_split(tmp_path):
    write(tmp_path / "boolq_train.jsonl", rows(20))
    write(tmp_path / "boolq_dev.jsonl.gz", rows(5, start=20))
    write(tmp_path / "boolqa_dev.jsonl", rows(3, start=50))
    found = read(BOOLQ, {"": str(tmp_path)})
    assert (len(found.scored), len(found.train)) == (5, 20)
    assert found.rule == "the dev split"
    drawn, same = shots(BOOLQ, found, 3, seed=0)
    assert same.scored == found.scored
    assert {shot.id for shot in drawn} <= {item.id for item in found.train}


def test_parquet_is_read_alike(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows(4))
    pyarrow.parquet.write_table(table, tmp_path / "boolq_dev.parquet")
    write(tmp_path / "boolq_dev.jsonl", rows(4))
    first = read(BOOLQ, {"boolq": str(tmp_path / "boolq_dev.parquet")})
    second = read(BOOLQ, {"boolq": str(tmp_path / "boolq_dev.jsonl")})
    assert first.scored == second.scored


def test_shots_from_the_only_file_are_not_scored(tmp_path):
    write(tmp_path / "mine.jsonl", rows(9))
    found = read(BOOLQ, {"boolq": str(tmp_path / "mine.jsonl")})
    drawn, rest = shots(BOOLQ, found, 2, seed=1)
    assert len(drawn) == 2
    assert not {s.id for s in drawn} & {item.id for item in rest.scored}
    assert len(rest.scored) == 7


def test_a_file_without_splits_is_parted_by_what_is_asked_and_not_by_place(tmp_path):
    task = TASKS["package_descriptions"]
    records = [
        {"text": f"Package {i} does {i}.", "summary": str(i)} for i in range(300)
    ]
    path = tmp_path / "package_descriptions.jsonl"
    write(path, records)
    found = read(task, {"": str(tmp_path)})
    write(path, records[::-1])
    again = read(task, {"": str(tmp_path)})
    assert {i.id for i in found.scored} == {i.id for i in again.scored}
    assert 10 < len(found.scored) < 60
    assert all(share(i.key) < 0.1 for i in found.scored)
    assert all(share(i.key) >= 0.1 for i in found.train)
    # What begins alike is on one side.
    twins = [{"text": "x" * 64 + str(i), "summary": "s"} for i in range(20)]
    write(path, [*twins, *records])
    parted = read(task, {"": str(tmp_path)})
    sides = [
        side for side in (parted.scored, parted.train) for i in side if i.key[0] == "x"
    ]
    assert all(side is sides[0] for side in sides)


def test_a_smaller_limit_is_part_of_a_larger_one(tmp_path):
    write(tmp_path / "boolq_dev.jsonl", rows(50))
    items = read(BOOLQ, {"": str(tmp_path)}).scored
    few, more = draw(items, 10), draw(items, 20)
    assert len(few) == 10
    assert set(i.id for i in few) <= set(i.id for i in more)
    assert [i.id for i in items if i in more] == [i.id for i in more]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"qestion": "a", "passage": "b", "answer": true}', "did you mean 'qestion'"),
        ('{"question": "a", "passage": "b", "answer": 7}', "none of 2 options"),
        ('{"question": "a", "passage": 3.5, "answer": null}', "is no example"),
        ("{", "not JSON"),
        ("", "nothing to score"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, told):
    (tmp_path / "boolq_dev.jsonl").write_text(content)
    with pytest.raises(DataError, match=told):
        read(BOOLQ, {"": str(tmp_path)})


def test_no_data_says_where_to_get_some(tmp_path):
    with pytest.raises(UserError, match=r"--data=asdiv=FILE.*nlu-asdiv"):
        read(TASKS["asdiv"], {})
    with pytest.raises(DataError, match="no such file"):
        read(BOOLQ, {"boolq": str(tmp_path / "none.jsonl")})
    (tmp_path / "other.jsonl").write_text("{}")
    with pytest.raises(UserError, match="has no file asdiv"):
        read(TASKS["asdiv"], {"": str(tmp_path)})


def test_what_is_published_is_read_from_there_by_subset_and_split(tmp_path):
    """As the Hub names what it converts; its server is tested in tests/data."""
    for name, records in (
        ("main/train/0000.jsonl", rows(4)),
        ("main/validation/0000.jsonl", rows(3, start=10)),
        ("other/validation/0000.jsonl", rows(9, start=20)),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        write(tmp_path / name, records)
    published = dataclasses.replace(BOOLQ, public=f"file://{tmp_path}", subset="main/")
    found = read(published, {})
    assert (len(found.train), len(found.scored)) == (4, 3)


def test_a_place_that_cannot_be_reached_says_what_else_to_give(monkeypatch):
    def fails(path):
        raise DataError(f"{path}: no network")

    monkeypatch.setattr("lmx.tasks.reading.places.find", fails)
    with pytest.raises(DataError, match=r"hf:google/boolq.*no network.*--data=boolq"):
        read(BOOLQ, {})


def test_texts_are_parted_by_what_names_their_domain(tmp_path):
    (tmp_path / "a.txt").write_text("one two")
    (tmp_path / "b.txt").write_text("three")
    found = read(TASKS["perplexity"], {"perplexity": str(tmp_path)})
    assert [item.group for item in found.scored] == ["a.txt", "b.txt"]
