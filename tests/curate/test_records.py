"""Records and what is wrong with them, against files written by hand."""

from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lmx.core.errors import DataError
from lmx.curate import records
from lmx.data import readers, streams
from lmx.data.files import list_files


def read(path, **kwargs):
    return list(readers.read(list_files(path), whole_files=True, **kwargs))


def lines(path, content: list[bytes]):
    path.write_bytes(b"\n".join(content))
    return path


def test_damaged_lines_are_told_and_the_others_read(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        [
            b'{"text": "one"}',
            b"{",
            b'{"text": "\xff"}',
            b"[1]",
            b"",
            b"[" * 100_000,
            b'{"text": "six"}',
        ],
    )
    found = read(path)
    assert [r.fields.get("text") for r in found if r.problem is None] == ["one", "six"]
    assert [r.name for r in found] == [f"a.jsonl#{n}" for n in (1, 2, 3, 4, 6, 7)]
    problems = [r.problem for r in found if r.problem]
    assert problems[0].startswith("not JSON")
    assert problems[1] == "not UTF-8 at byte 10"
    assert problems[2] == "list, not an object"
    assert problems[3].startswith("not JSON")


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_lines_are_whole_whatever_is_read_at_a_time(tmp_path, monkeypatch, size):
    monkeypatch.setattr(streams, "READ_BYTES", size)
    content = [json.dumps({"text": "x" * n}).encode() for n in (0, 1, 5, 40)]
    found = read(lines(tmp_path / "a.jsonl", content))
    assert [len(r.fields["text"]) for r in found] == [0, 1, 5, 40]


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_a_line_that_is_too_long_is_told_and_the_next_is_read(
    tmp_path, monkeypatch, size
):
    monkeypatch.setattr(streams, "READ_BYTES", size)
    monkeypatch.setattr(streams, "LONGEST_LINE", 40)
    content = [b'{"text": "%s"}' % (b"x" * n) for n in (3, 100, 4, 100)]
    found = read(lines(tmp_path / "a.jsonl", content))
    assert [r.fields.get("text") for r in found] == ["xxx", None, "xxxx", None]
    assert all("a line of more than" in r.problem for r in (found[1], found[3]))


def test_packed_lines_equal_plain_ones(tmp_path):
    import pyarrow

    content = b'{"text": "a"}\n{"text": "b"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    with pyarrow.output_stream(str(tmp_path / "b.jsonl.zst"), compression="zstd") as f:
        f.write(content)
    assert [r.fields["text"] for r in read(tmp_path)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("keep", [10, -6])
def test_a_packed_file_that_is_cut_off_is_named(tmp_path, keep):
    packed = gzip.compress(os.urandom(5000).hex().encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:keep])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is not a whole gzip file"):
        read(tmp_path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "EXPANSION_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * (8 << 20)))
    with pytest.raises(DataError, match="taken for a bomb"):
        read(tmp_path)


def test_a_column_that_repeats_one_long_text_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "EXPANSION_BYTES", 1 << 20)
    once = pyarrow.array(["a" * 10_000])
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(2000, np.int32), once)
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match="taken for a bomb"):
        read(tmp_path)


def test_files_that_are_no_text_are_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    (tmp_path / "b.txt").write_bytes("hällo".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes("hi".encode("utf-16"))
    (tmp_path / "d.txt").write_text("fine", encoding="utf-8-sig")
    found = read(tmp_path)
    assert [r.problem for r in found] == [
        "binary",
        "not UTF-8 at byte 1",
        "UTF-16",
        None,
    ]
    assert found[3].fields["text"] == "fine"


def test_a_file_that_changes_under_a_build_is_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", [b'{"text": "one"}'])
    entries = list_files(path)
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match="changed while it was read"):
        list(readers.read(entries, whole_files=True))
    path.unlink()
    with pytest.raises(DataError, match="vanished while it was being read"):
        list(readers.read(entries, whole_files=True))


def test_shards_hold_all_files_in_order(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("x" * 10 * number)
    entries = list_files(tmp_path)
    shards = records.cut(entries, size=60)
    assert [entry for shard in shards for entry in shard] == entries
    assert all(len(s) == 1 or sum(e.size for e in s) <= 60 for s in shards)


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        ("{text}", {"text": "a {b}"}, "a {b}"),
        ("{a}\n{b}", {"a": "x", "b": 3}, "x\n3"),
        ("{a}{b}", {"a": None, "b": ["p", "q"]}, "p\nq"),
        (
            "{messages}",
            {"messages": [{"role": "user", "content": "hi"}]},
            "user: hi",
        ),
    ],
)
def test_a_template_is_filled_in_once(template, fields, text):
    assert records.render(template, fields) == text


def test_a_field_that_is_not_there_or_no_text_is_told():
    with pytest.raises(KeyError) as error:
        records.render("{txt}", {"text": "a"})
    assert records.missing_field(error.value, {"text": ""}) == (
        "no field 'txt'; did you mean 'text'?"
    )
    with pytest.raises(TypeError, match="holds dict, not text"):
        records.render("{text}", {"text": {}})
    with pytest.raises(DataError, match="names no field"):
        records.check_template("text", "sources.a.text")
