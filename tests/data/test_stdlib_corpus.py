from __future__ import annotations

import ast
import shutil
import sys
import sysconfig
from collections import Counter

import pytest

from lmx.core.errors import DataError, StorageError
from lmx.data import sources, stdlib_files
from lmx.data.sources import Document


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _read(cache, tally: Counter[str], limit: int | None = None) -> list[Document]:
    source = sources.open_source("python_stdlib", text_field="text", cache_dir=cache)
    documents = sources.read_documents(
        source, validation_fraction=0.05, max_documents=limit, tally=tally
    )
    return list(documents)


def test_the_corpus_is_real_split_disjoint_and_repeatable(cache):
    tally: Counter[str] = Counter()
    documents = _read(cache, tally)
    held_out = [d for d in documents if d.held_out]
    assert sum(len(d.text) for d in documents) > 5_000_000
    assert 0.02 < len(held_out) / len(documents) < 0.1
    assert len({d.digest for d in documents}) == len(documents)
    assert _read(cache, Counter()) == documents
    assert len(_read(cache, Counter(), limit=40)) == 40


def test_it_needs_no_tensorflow_and_names_its_python(cache):
    _read(cache, Counter(), limit=2)
    version = "{}.{}.{}".format(*sys.version_info[:3])
    assert list(cache.glob(f"tfds/*/python_stdlib/{version}/*.array_record*"))
    assert "tensorflow" not in sys.modules


def test_it_holds_modules_that_parse_and_topics_but_no_tests():
    documents = dict(stdlib_files.read_stdlib(Counter()))
    for name in ("ast.py", "json/decoder.py"):
        ast.parse(documents[name])
    assert "pydoc_data/topics/assert" in documents
    parts = {part for name in documents for part in name.split("/")}
    assert not parts & {"site-packages", "test", "tests", "idle_test", "_bundled"}


def test_a_python_without_its_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match=r"0 \.py files there"):
        stdlib_files.list_stdlib()


def test_a_python_without_its_topics_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="no pydoc_data"):
        list(stdlib_files.read_stdlib(Counter()))


def test_a_wrong_field_names_the_nearest(cache):
    source = sources.open_source("python_stdlib", text_field="txt", cache_dir=cache)
    with pytest.raises(DataError, match="did you mean 'text'"):
        list(source.read(Counter()))


def test_a_folder_that_tfds_wrote_is_a_source(cache):
    _read(cache, Counter(), limit=2)
    (folder,) = cache.glob("tfds/*/python_stdlib/*")
    source = sources.open_source(str(folder), text_field="text", cache_dir=cache)
    splits = Counter(split for split, _, _ in source.read(Counter()))
    assert splits["train"] > splits["validation"] > 0


def test_a_damaged_data_set_is_named_and_the_built_in_one_made_again(cache, tmp_path):
    whole = _read(cache, Counter())
    shutil.copytree(cache, tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob("tfds/*/*/*/*train.array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    folder = sources.open_source(str(shard.parent), text_field="text", cache_dir=cache)
    with pytest.raises(DataError, match=r"is damaged .*delete .*prepare it again"):
        list(folder.read(Counter()))
    assert _read(tmp_path / "copy", Counter()) == whole
    shutil.rmtree(shard.parent)
    assert _read(tmp_path / "copy", Counter()) == whole


def test_a_full_disk_while_the_corpus_is_written_is_a_storage_error(
    tmp_path, monkeypatch
):
    def full(*_, **__) -> None:  # what ArrayRecord was seen to raise
        raise RuntimeError("write() failed: No space left on device; writing x")

    builder = "lmx.data.stdlib_corpus.PythonStdlib.download_and_prepare"
    monkeypatch.setattr(builder, full)
    with pytest.raises(StorageError, match="free some space"):
        _read(tmp_path, Counter())
    assert list((tmp_path / "tfds").iterdir()) == []


def test_a_data_set_that_is_not_here_names_the_command(cache):
    with pytest.raises(DataError, match="download_and_prepare"):
        sources.open_source("imdb_reviews", text_field="text", cache_dir=cache)
    with pytest.raises(DataError, match="did you mean 'python_stdlib'"):
        sources.open_source("python_stdlb", text_field="text", cache_dir=cache)
