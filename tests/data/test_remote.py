"""A store behind a URL gives what the same store here gives, or an error that names it.

fsspec's file system in memory stands for an object store. The bound above which tokens
stay there is lowered to nothing, so that they are read by ranges.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import DataError
from lmx.core.schema import DataConfig
from lmx.data import built, mirror, pipeline, places, remote
from lmx.data.built import Content, Document, create, write_part
from lmx.data.remote import Blocks, RemoteNumbers
from lmx.inputs.example import Example
from lmx.inputs.tokenizers import train_tokenizer

URL = "memory://bucket/mix"


@pytest.fixture
def memory(monkeypatch):
    """The file system, empty; each call of `cat_ranges` is noted in `asked`."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    asked: list[int] = []
    cat_ranges = files.cat_ranges

    def noted(paths, starts, ends, **options):
        asked.append(len(paths))
        return cat_ranges(paths, starts, ends, **options)

    monkeypatch.setattr(files, "cat_ranges", noted, raising=False)
    files.asked = asked
    yield files
    files.store.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A store of texts and of examples."""
    folder = tmp_path_factory.mktemp("local")
    tokenizer = train_tokenizer("byte", [], 259)
    texts = [
        Document(f"t{n}", f"Text {n} größer\n" * (1 + n % 5), None, [bytes([n] * n)])
        for n in range(40)
    ]
    examples = [
        Document(f"e{n}", "", Example([*range(5, 30 + n)], [n % 2] * (25 + n), 9))
        for n in range(12)
    ]
    parts = {}
    for name, documents, group, columns in (
        ("texts", texts, 0, ("image",)),
        ("asked", examples, 1, ()),
    ):
        splits = {"train": documents[5:], "validation": documents[:5]}
        part = write_part(
            folder / name, tokenizer, **splits, group=group, columns=columns
        )
        parts[name] = Content("CC0-1.0", ("train",), [part])
    card = lambda counts: ({}, "<html></html>")  # noqa: E731
    create(folder / "mix", tokenizer, sources=parts, config={}, card=card)
    return folder / "mix"


@pytest.fixture
def uploaded(memory, local, monkeypatch):
    """The store at URL, all of whose tokens are left there."""
    memory.put(f"{local}/", "/bucket/mix/", recursive=True)
    monkeypatch.setattr(mirror, "COPIED_BYTES", 0)
    monkeypatch.setattr(built, "Blocks", partial(Blocks, block=64))
    return memory


def corpus(path, cache: Path, **options) -> pipeline.Corpus:
    config = DataConfig(path=str(path), batch_size=4, cache_dir=str(cache), **options)
    return pipeline.prepare(config, context_length=32, seed=3, steps=50, report=str)


@pytest.mark.parametrize("packing", ["concat", "document", "best_fit"])
def test_batches_are_those_of_the_local_copy(local, uploaded, tmp_path, packing):
    here, there = (corpus(path, tmp_path, packing=packing) for path in (local, URL))
    assert isinstance(there.sources[0].train.tokens, RemoteNumbers)
    assert there.digest == here.digest
    assert there.summary | {"source": ""} == here.summary | {"source": ""}
    for step in (0, 1, 49):
        pair = (each.train_batches().at(step) for each in (here, there))
        for left, right in zip(*pair, strict=True):
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)
    for ids in here.validation_ids(None):
        pair = (each.validation_rows.batch(ids) for each in (here, there))
        assert all(map(np.array_equal, *pair))
    assert there.validation_text() == here.validation_text()
    source = there.sources[1].train
    assert source.column("image", 0) == bytes([5] * 5)
    assert source.column("image", 34) == bytes([39] * 39)
    # All the rows of a step come in one request, but what is known already.
    assert there.train_batches().at(7)
    uploaded.asked.clear()
    there.train_batches().at(7)
    assert uploaded.asked == []


def test_a_small_store_is_copied_whole_and_once(local, memory, tmp_path, monkeypatch):
    memory.put(f"{local}/", "/bucket/mix/", recursive=True)
    folder = Path(mirror.opened_at(URL, cache_dir=tmp_path))
    for path in local.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(local)).read_bytes() == path.read_bytes()
    monkeypatch.setattr(mirror, "_copy", None)
    assert mirror.opened_at(URL, cache_dir=tmp_path) == str(folder)
    assert mirror.opened_at(f"file://{local}", cache_dir=tmp_path) == str(local)


def test_what_is_no_store_is_left_to_others(memory, tmp_path):
    memory.pipe("/corpus/a.txt", b"text")
    memory.pipe("/other/manifest.json", b'{"kind": "something else"}')
    for url in ("memory://corpus", "memory://other", "memory://nowhere", "a/path"):
        assert mirror.opened_at(url, cache_dir=tmp_path) == url


def changed(files) -> None:
    path = "/bucket/mix/train/texts/tokens.bin"
    content = files.cat(path)
    files.pipe(path, content[::-1])


def shorter(files) -> None:
    path = "/bucket/mix/train/texts/tokens.bin"
    files.pipe(path, files.cat(path)[:-2])


def gone(files) -> None:
    files.rm("/bucket/mix/train/texts/tokens.bin")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (changed, "changed while it was read"),
        (shorter, "changed while it was read"),
        (gone, "vanished while it was being read"),
    ],
)
def test_a_store_that_changes_midway_is_named(uploaded, tmp_path, happens, said):
    batches = corpus(URL, tmp_path, mixture=("texts=1",)).train_batches()
    batches.at(0)
    happens(uploaded)
    with pytest.raises(DataError, match=rf"train/texts/tokens\.bin {said}"):
        list(map(batches.at, range(50)))


@pytest.mark.parametrize(
    "name", ["manifest.json", "train/texts/manifest.json", "tokenizer/tokenizer.json"]
)
def test_a_damaged_store_leaves_nothing_and_is_named(local, memory, tmp_path, name):
    memory.put(f"{local}/", "/bucket/mix/", recursive=True)
    content = memory.cat(f"/bucket/mix/{name}")
    memory.pipe(f"/bucket/mix/{name}", content.replace(b"a", b"b", 1))
    with pytest.raises(DataError, match=f"{URL}.*{Path(name).name}"):
        mirror.opened_at(URL, cache_dir=tmp_path)
    assert not list((tmp_path / "remote").iterdir())
    memory.pipe(f"/bucket/mix/{name}", content)
    assert built.is_built(mirror.opened_at(URL, cache_dir=tmp_path))


def test_a_store_built_anew_at_the_same_url_is_copied_anew(uploaded, local, tmp_path):
    first = mirror.opened_at(URL, cache_dir=tmp_path)
    uploaded.put(f"{local}/", "/bucket/mix/", recursive=True)
    assert mirror.opened_at(URL, cache_dir=tmp_path) != first


@given(
    size=st.integers(1, 300),
    block=st.integers(1, 40).map(lambda n: 2 * n),
    held=st.integers(1, 400),
    ranges=st.lists(st.tuples(st.integers(0, 320), st.integers(0, 60)), max_size=9),
)
def test_ranges_are_those_of_an_array_whatever_is_held(size, block, held, ranges):
    files = fsspec.filesystem("memory")
    numbers = np.arange(size, dtype=np.uint16) * 7
    files.pipe("/ranges/x.bin", numbers.tobytes())
    listing = places.find("memory://ranges/x.bin")
    blocks = Blocks(held_bytes=held, block=block)
    found = RemoteNumbers(listing.entries[0], "<u2", blocks)
    assert len(found) == size
    starts, lengths = np.array(ranges, np.int64).reshape(-1, 2).T
    starts = np.minimum(starts, size - 1)
    blocks.fetch(found.parts(starts, starts + lengths + 1))
    for start, length in zip(starts, lengths, strict=True):
        part = slice(start, start + length)
        assert np.array_equal(found[part], numbers[part])
        assert found[int(start)] == numbers[start]
    assert len(blocks._held) <= max(1, held // block)


def test_neighbouring_blocks_are_one_range(memory):
    memory.pipe("/ranges/x.bin", bytes(range(100)))
    entry = places.find("memory://ranges/x.bin").entries[0]
    blocks = Blocks(block=10)
    found = blocks.fetch({(entry, index) for index in (1, 2, 3, 7, 9)})
    assert memory.asked == [3]
    assert found[entry, 9] == bytes(range(90, 100))
    blocks.fetch({(entry, 2), (entry, 7)})
    assert memory.asked == [3]


def test_a_note_of_a_file_is_not_mistaken_for_it(uploaded, tmp_path):
    folder = Path(mirror.opened_at(URL, cache_dir=tmp_path))
    note = folder / "train/texts/tokens.bin.url"
    entry = remote.entry_of(folder / "train/texts/tokens.bin")
    remote.leave(folder / "train/texts/tokens.bin", entry._replace(size=entry.size - 2))
    assert note.exists()
    with pytest.raises(DataError, match=r"tokens\.bin has .* bytes, not"):
        built.open_built(folder)


def test_a_part_of_an_upload_is_told_as_a_store(local, memory, tmp_path):
    memory.put(f"{local}/", "/bucket/mix/", recursive=True)
    memory.rm("/bucket/mix/manifest.json")
    with pytest.raises(DataError, match=rf"{URL}.*manifest\.json"):
        corpus(URL, tmp_path)
    memory.put(f"{local}/manifest.json", "/bucket/mix/manifest.json")
    memory.rm("/bucket/mix/train/asked/offsets.npy")
    with pytest.raises(DataError, match=rf"{URL}/train/asked.*offsets\.npy"):
        corpus(URL, tmp_path)
