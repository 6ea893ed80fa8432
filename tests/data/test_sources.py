from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError, UserError
from lmx.data import readers, sources
from lmx.data.sources import Document, open_source, read_documents


def _read(
    path: Path | str,
    *,
    field: str = "text",
    fraction: float = 0.2,
    limit: int | None = None,
    tally: Counter[str] | None = None,
) -> list[Document]:
    source = open_source(str(path), text_field=field, cache_dir=Path("unused"))
    found = read_documents(
        source,
        validation_fraction=fraction,
        max_documents=limit,
        tally=Counter() if tally is None else tally,
    )
    return list(found)


def _texts(path: Path | str, **options) -> list[str]:
    return [document.text for document in _read(path, **options)]


def _jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return path


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/.hidden", ".git/config", "__pycache__/x.pyc"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(f"text of {name}", "utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert _texts(tmp_path) == ["text of a/z.md", "text of b.txt"]


def test_a_folder_may_hold_shards_of_records(tmp_path):
    _jsonl(tmp_path / "1.jsonl", ["one", "two"])
    (tmp_path / "2.txt").write_text("three", "utf-8")
    assert _texts(tmp_path) == ["one", "two", "three"]


def test_a_few_files_that_are_not_text_are_skipped_and_counted(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", "utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin1"))
    tally: Counter[str] = Counter()
    assert len(_read(tmp_path, tally=tally)) == 40
    assert tally["skipped"] == 2
    (tmp_path / "utf16.txt").write_text("text", "utf-16")
    with pytest.raises(DataError, match=r"image\.png \(binary\), latin\.txt .*iconv"):
        _read(tmp_path)


def test_a_named_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "x.txt"
    for content, reason in (
        (b"ab\0", "binary"),
        (b"ab\xff", "not UTF-8 at byte 2"),
        ("é".encode("utf-16"), "UTF-16"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            _read(file)


@settings(deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n\r"))
    | st.integers(1, 300).map(lambda n: "one two\n\nthree\n" * n * 50)
)
def test_pieces_of_a_text_join_to_it_and_are_of_fair_size(text):
    pieces = list(readers.split_text(iter([text])))
    assert "".join(pieces) == text
    assert all(len(piece) <= 4 * readers.LARGEST_PIECE for piece in pieces)
    if len(text) > 3 * readers.SMALLEST_PIECE:
        assert len(pieces) > 1


def test_pieces_end_at_blank_lines():
    pieces = list(readers.split_text(iter(["some words\nand more\n\n" * 500])))
    assert len(pieces) > 4
    assert all(piece.endswith("\n\n") for piece in pieces)


@pytest.mark.parametrize(
    "suffix",
    [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".array_record", ".txt.gz"],
)
def test_each_format_gives_the_same_text(tmp_path, suffix):
    texts = ["first", "second\nwith lines", "dritte Größe 🙂"]
    file = tmp_path / f"data{suffix}"
    lines = "".join(json.dumps({"id": 1, "text": t}) + "\n" for t in texts)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    elif suffix == ".txt.gz":
        texts = ["\n\n".join(texts)]
        file.write_bytes(gzip.compress(texts[0].encode()))
    elif suffix == ".jsonl.zst":
        packed = pyarrow.Codec("zstd").compress(lines.encode(), asbytes=True)
        file.write_bytes(packed)
    elif suffix == ".array_record":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(file), "group_size:1")
        for line in lines.splitlines():
            writer.write(line.encode())
        writer.close()
    elif suffix == ".jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text(lines, "utf-8")
    assert _texts(file) == texts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_missing_field_names_the_nearest(tmp_path, suffix):
    file = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"texts": ["x"], "n": [1]}), file)
    else:
        file.write_text('{"texts": "x", "n": 1}\n', "utf-8")
    with pytest.raises(DataError, match="no field 'text'; did you mean 'texts'"):
        _read(file)
    with pytest.raises(DataError, match="holds int, not text"):
        _read(file, field="n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"data.jsonl#2 of .*: not JSON"),
        (b"[1]", "list, not an object"),
        (b'{"text": "\xff"}', r"data.jsonl#2 of .*: not UTF-8 at byte 10"),
        (b"[" * 100_000, r"data.jsonl#2 of .*: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        _read(file)


def test_truncated_archives_are_named(tmp_path):
    file = tmp_path / "data.jsonl.gz"
    content = gzip.compress(b'{"text": "good"}\n' * 1000)
    for damaged in (content[:-20], b"not gzip", content[:20] + b"\0" + content[21:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data\.jsonl\.gz"):
            _read(file)
    parquet = tmp_path / "data.parquet"
    parquet.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a whole parquet file"):
        _read(parquet)


def test_a_missing_path_names_its_neighbour(tmp_path):
    _jsonl(tmp_path / "shakespeare.jsonl", ["x"])
    with pytest.raises(DataError, match=r"did you mean '.*/shakespeare\.jsonl'"):
        _read(tmp_path / "shakespear.jsonl")
    with pytest.raises(DataError, match="neither a file"):
        _read("no_such_data_set")
    with pytest.raises(DataError, match="no usable path"):
        _read("~no_such_user/x.txt")
    with pytest.raises(DataError, match="no usable path"):
        _read("x" * 5000)


def test_an_empty_folder_and_a_device_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no files"):
        _read(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        _read("/dev/null")


def test_a_file_that_vanishes_midway_is_named(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name, "utf-8")
    source = open_source(str(tmp_path), text_field="text", cache_dir=tmp_path)
    (tmp_path / "b").unlink()
    with pytest.raises(DataError, match="b vanished while it was being read"):
        list(source.read(Counter()))


def test_duplicates_go_whatever_their_line_ends(tmp_path):
    texts = ["one\ntwo", "one\r\ntwo", "other", "", "one\ntwo", "  \n"]
    tally: Counter[str] = Counter()
    found = _texts(_jsonl(tmp_path / "x.jsonl", texts), tally=tally)
    assert found == ["one\ntwo", "other"]
    assert tally == {"documents": 2, "duplicates": 2, "empty": 2}


def test_lone_surrogates_in_records_become_replacement_characters(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude42"}\n', "utf-8")
    assert _texts(file) == ["a\ufffdb", "🙂"]


def test_the_split_does_not_depend_on_order_or_on_other_documents(tmp_path):
    texts = [f"document {number}" for number in range(300)]
    split = {d.text: d.held_out for d in _read(_jsonl(tmp_path / "1.jsonl", texts))}
    random.Random(0).shuffle(texts)
    fewer = _read(_jsonl(tmp_path / "2.jsonl", texts[:150]))
    assert all(split[document.text] == document.held_out for document in fewer)
    assert 30 <= sum(split.values()) <= 90  # 60 expected, 7 standard deviations


def test_a_larger_fraction_holds_out_a_superset(tmp_path):
    file = _jsonl(tmp_path / "1.jsonl", [f"document {n}" for n in range(200)])
    small = {d.text for d in _read(file, fraction=0.1) if d.held_out}
    large = {d.text for d in _read(file, fraction=0.3) if d.held_out}
    assert small < large


def test_a_limit_takes_so_many_documents(tmp_path):
    file = _jsonl(tmp_path / "1.jsonl", [f"document {n // 2}" for n in range(50)])
    assert len(_read(file, limit=7)) == 7
    for options in ({"limit": 1}, {"fraction": 0.0}, {"fraction": 1.0}):
        with pytest.raises(UserError, match="it must be"):
            _read(file, **options)


def test_the_identity_changes_with_the_content(tmp_path):
    def identity() -> str:
        source = open_source(str(tmp_path), text_field="text", cache_dir=tmp_path)
        return json.dumps(source.identity)

    file = tmp_path / "a.txt"
    file.write_text("one", "utf-8")
    before = identity()
    assert identity() == before
    file.write_text("more", "utf-8")
    changed = identity()
    (tmp_path / "b.txt").write_text("one", "utf-8")
    assert len({before, changed, identity()}) == 3


def test_limits_leave_room_for_validation_in_split_sources():
    assert sources._limits(10, 0.05) == {"None": 10, "validation": 1, "train": 9}


def test_nothing_is_read_past_the_last_document_that_is_needed(tmp_path):
    path = _jsonl(tmp_path / "text.jsonl", ["one", "two", "three"])
    with path.open("a", encoding="utf8") as file:
        file.write("{ this line is broken\n")
    assert _texts(path, limit=2) == ["one", "two"]
    with pytest.raises(DataError):
        _texts(path)
