"""Files behind URLs against the same files here, and servers that are not there."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import sys
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lmx.core.errors import DataError, UserError
from lmx.data import places, readers, streams

registry = importlib.import_module("fsspec.registry")._registry


@pytest.fixture
def memory():
    """fsspec's file system in memory, which is one for the whole process."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def write(folder: Path) -> None:
    """Writes a folder with a file of every kind, and what does not count."""
    rows = [{"text": f"row {n}", "n": n} for n in range(3)]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    for name, content in {
        "a/one.txt": b"one",
        "a/two.txt.gz": gzip.compress(b"two"),
        "b.jsonl": lines + b"\n{",
        "c.jsonl.gz": gzip.compress(lines),
        "d.jsonl.zst": pyarrow.Codec("zstd").compress(lines, asbytes=True),
        "latin.txt": "Größe".encode("latin1"),
        ".hidden/x.txt": b"x",
        "a/__pycache__/x.pyc": b"x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "e.parquet")


def test_a_url_is_read_as_the_same_files_here_are(tmp_path, memory):
    write(tmp_path)
    memory.put(f"{tmp_path}/", "/corpus/", recursive=True)
    here, there = places.find(str(tmp_path)), places.find("memory://corpus")
    assert here is not None
    assert there is not None
    assert [e[1:3] for e in there.entries] == [e[1:3] for e in here.entries]
    found = list(readers.read(there.entries, whole_files=True))
    assert found == list(readers.read(here.entries, whole_files=True))
    assert sum(record.problem is None for record in found) == 14
    for name in ("a/one.txt", "e.parquet"):
        one = places.find(f"memory://corpus/{name}")
        assert one is not None
        assert one.single
        assert [entry.name for entry in one.entries] == [name.rpartition("/")[2]]
    assert places.find(f"file://{tmp_path}") == here
    assert places.find("memory://nowhere") is None


def test_damage_behind_a_url_is_bounded_and_named_too(memory, monkeypatch):
    packed = gzip.compress(b"a line\n" * 10_000)
    memory.pipe("/cut.txt.gz", packed[:-20])
    memory.pipe("/bomb.jsonl.gz", gzip.compress(b"0" * (5 << 20)))
    memory.pipe("/cut.parquet", b"PAR1 and no more")
    monkeypatch.setattr(streams, "EXPANSION_BYTES", 1 << 20)
    for name, told in {
        "cut.txt.gz": "not a whole gzip file",
        "bomb.jsonl.gz": "taken for a bomb",
        "cut.parquet": "not a whole parquet file",
    }.items():
        found = places.find(f"memory://{name}")
        assert found is not None
        with pytest.raises(DataError, match=rf"memory://.*{name} .*{told}"):
            list(readers.read(found.entries, whole_files=True))


def test_a_file_that_changes_behind_its_url_is_named(memory):
    memory.pipe("/x.jsonl", b'{"text": "one"}\n' * 2)
    found = places.find("memory://x.jsonl")
    assert found is not None
    reading = readers.read(found.entries, whole_files=True)
    next(reading)
    memory.pipe("/x.jsonl", b'{"text": "two"}\n' * 2)  # as long as before
    with pytest.raises(DataError, match="changed while it was read"):
        list(reading)
    memory.rm("/x.jsonl")
    with pytest.raises(DataError, match="vanished while it was being read"):
        list(readers.read(found.entries, whole_files=True))


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "same.txt").symlink_to("a/x.txt")
    os.mkfifo(tmp_path / "pipe")
    found = places.find(str(tmp_path))
    assert found is not None
    assert [entry.name for entry in found.entries] == ["a/x.txt", "same.txt"]
    assert found.passed_over == [
        ("a/loop", "a link to a folder"),
        ("gone.txt", "a link to nowhere"),
        ("pipe", "a pipe, socket or device"),
        ("self", "a link to nowhere"),
    ]


class Unreachable(MemoryFileSystem):
    """A server of which each request fails, with an exception of its library."""

    protocol = "hf"
    cachable = False

    def info(self, path, **kwargs):
        class ConnectError(Exception):
            pass

        raise ConnectError("Name or service\nnot known")


def test_a_server_out_of_reach_says_to_go_online(monkeypatch):
    monkeypatch.setitem(registry, "hf", Unreachable)
    told = r"ConnectError: Name or service not known\); go online .* path of a copy"
    for url in ("hf:who/Tiny", "hf://datasets/who/Tiny/data"):
        with pytest.raises(DataError, match=told):
            places.find(url)
    with pytest.raises(DataError, match="write hf:OWNER/NAME"):
        places.find("hf:Tiny")


@pytest.mark.parametrize(("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gs")])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, url, extra):
    for name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(registry, "s3", raising=False)
    with pytest.raises(UserError, match=rf"pip install 'lmx\[{extra}\]'"):
        places.find(url)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(DataError, match="no usable URL"):
        places.find("nowhere://x/y")


def test_lists_are_read_from_anywhere(memory):
    memory.pipe("/list.txt", "\ufeffone \n\n zwei\n".encode())
    assert places.read_lines("memory://list.txt", "removals") == ["one", "zwei"]
    for path in ("memory://none", "/nowhere", "/"):
        with pytest.raises(DataError, match=rf"removals='{path}' cannot be read"):
            places.read_lines(path, "removals")


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-has-this-name/x"])
def test_a_path_that_none_can_have_is_refused(path):
    with pytest.raises(DataError, match="is no usable path"):
        places.find(path)
    with pytest.raises(DataError, match=r"removals='.{1,120}cannot be read"):
        places.read_lines(path, "removals")


@pytest.mark.parametrize("url", ["zip://a.txt::/x.zip", "zip://*::memory://x.zip"])
def test_a_url_within_a_url_is_refused(url):
    with pytest.raises(DataError, match="unpack it and give the folder"):
        places.find(url)


def test_a_url_that_lacks_what_its_file_system_asks_for_is_refused():
    with pytest.raises(DataError, match="no usable URL"):
        places.find("zip://a.txt")
