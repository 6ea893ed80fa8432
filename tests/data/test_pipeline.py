from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError, StorageError, UserError
from lmx.core.schema import DataConfig
from lmx.data import pipeline, store
from lmx.data.batches import Batches
from lmx.data.pipeline import Corpus, prepare
from lmx.data.store import TokenStore
from lmx.inputs.batch import Batch
from lmx.inputs.tokenizers import train_tokenizer

LENGTH = 16
COUNT = 60


def _text(number: int) -> str:
    return f"Document {number} says {number * number} and größer 🙂.\n" * (
        1 + number % 4
    )


@pytest.fixture
def config(tmp_path) -> DataConfig:
    lines = (json.dumps({"text": _text(n)}) + "\n" for n in range(COUNT))
    file = tmp_path / "text.jsonl"
    file.write_text("".join(lines), "utf-8")
    return DataConfig(
        path=str(file),
        vocab_size=300,
        batch_size=4,
        validation_fraction=0.2,
        cache_dir=str(tmp_path / "cache"),
    )


def _prepare(config: DataConfig, report: Callable[[str], object] = str) -> Corpus:
    return prepare(config, context_length=LENGTH, seed=0, report=report)


def _equal(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _documents(split: TokenStore, corpus: Corpus) -> list[str]:
    decode = corpus.tokenizer.decode
    return [decode(split.document(i)) for i in range(split.num_documents)]


def test_both_splits_together_are_the_source_and_nothing_is_in_both(config):
    corpus = _prepare(config)
    train = _documents(corpus.train, corpus)
    validation = _documents(corpus.validation, corpus)
    assert Counter(train + validation) == Counter(map(_text, range(COUNT)))
    assert corpus.validation_text() == "".join(validation).encode()
    assert corpus.validation.source_bytes == len(corpus.validation_text())


def test_the_summary_counts_what_there_is(config):
    corpus = _prepare(config)
    for name, split in (("train", corpus.train), ("validation", corpus.validation)):
        assert corpus.summary[name] == {
            "documents": split.num_documents,
            "bytes": split.source_bytes,
            "tokens": split.num_tokens,
        }
    assert corpus.summary["duplicates_removed"] == 0


def test_a_second_call_reads_the_cache_and_does_not_encode(config, monkeypatch):
    first = _prepare(config)
    monkeypatch.setattr(pipeline, "_build", None)
    again = _prepare(dataclasses.replace(config, batch_size=8, packing="document"))
    assert again.directory == first.directory
    assert np.array_equal(again.train.tokens, first.train.tokens)
    assert again.summary == first.summary


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 310},
        {"tokenizer": "byte"},
        {"validation_fraction": 0.3},
        {"max_documents": 30},
    ],
)
def test_settings_that_change_tokens_prepare_again(config, change):
    first = _prepare(config)
    assert _prepare(dataclasses.replace(config, **change)).directory != first.directory


def test_a_changed_file_is_prepared_again(config):
    first = _prepare(config)
    with open(config.path, "a") as file:
        file.write('{"text": "one more"}\n')
    second = _prepare(config)
    documents = [
        c.train.num_documents + c.validation.num_documents for c in (first, second)
    ]
    assert documents == [COUNT, COUNT + 1]


def test_a_half_written_directory_is_ignored(config):
    directory = _prepare(config).directory
    shutil.copytree(directory, directory.with_name(f".partial-{directory.name}-0"))
    shutil.rmtree(directory)
    assert _prepare(config).train.num_documents > 0


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "train/tokens.bin", "validation.txt", "tokenizer/meta.json"],
)
def test_damaged_cache_is_said_and_built_anew(config, name):
    first = _prepare(config)
    tokens = first.train.tokens.tolist()
    for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, 5)):
        damage(first.directory / name)
        said: list[str] = []
        assert _prepare(config, report=said.append).train.tokens.tolist() == tokens
        assert "damaged" in said[0]


def test_two_processes_may_prepare_at_once(config):
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(lambda _: _prepare(config), range(2))
    assert left.directory == right.directory
    assert left.tokenizer.fingerprint == right.tokenizer.fingerprint
    assert os.listdir(left.directory.parent) == [left.directory.name]


def test_a_tokenizer_made_before_is_used(config, tmp_path):
    train_tokenizer("bpe", ["other text"], 270).save(tmp_path / "mine")
    path = str(tmp_path / "mine" / "tokenizer.json")
    corpus = _prepare(dataclasses.replace(config, tokenizer=path))
    assert corpus.tokenizer.vocab_size <= 270
    with pytest.raises(DataError, match=r"no tokenizer at .*bpe"):
        _prepare(dataclasses.replace(config, tokenizer="bpee"))


def test_a_full_disk_leaves_nothing(config, monkeypatch):
    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_manifest", full)
    with pytest.raises(StorageError, match="No space left"):
        _prepare(config)
    assert os.listdir(Path(str(config.cache_dir), "prepared")) == []


def test_too_little_space_is_said_before_anything_is_written(config, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="MB free"):
        _prepare(config)


def test_an_unwritable_cache_names_the_remedy(config):
    with pytest.raises(StorageError, match="LMX_CACHE"):
        _prepare(dataclasses.replace(config, cache_dir=config.path))


def test_the_cache_can_be_named_by_the_environment(config, monkeypatch, tmp_path):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path / "elsewhere"))
    corpus = _prepare(dataclasses.replace(config, cache_dir=None))
    assert corpus.directory.is_relative_to(tmp_path / "elsewhere")


def test_text_that_is_too_short_or_empty_names_the_remedy(config):
    file = Path(config.path)
    for lines, message in (
        ([], "has no text"),
        (["", ""], r"has no text \(2 empty\)"),
        (["only one"], "too few to hold one out"),
        (["a", "b"], "lower model.context_length"),
    ):
        file.write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
        with pytest.raises(DataError, match=message):
            _prepare(config)


def test_of_two_documents_one_is_always_held_out(config):
    lines = [json.dumps({"text": letter * 99}) for letter in "ab"]
    Path(config.path).write_text("\n".join(lines))
    change = {"validation_fraction": 0.001, "tokenizer": "byte"}
    corpus = _prepare(dataclasses.replace(config, **change))
    assert (corpus.train.num_documents, corpus.validation.num_documents) == (1, 1)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory) -> TokenStore:
    directory = tmp_path_factory.mktemp("store") / "store"
    tokenizer = train_tokenizer("byte", [], 259)
    store.write_store(directory, map(_text, range(9)), tokenizer)
    return TokenStore.open(directory)


def _batches(small_store: TokenStore, **options) -> Batches:
    defaults = {
        "batch_size": 4,
        "context_length": LENGTH,
        "seed": 5,
        "shuffle": "epoch",
        "packing": "concat",
        "prefetch": 2,
        "workers": 1,
    }
    return Batches(small_store, **(defaults | options))


@settings(deadline=None, max_examples=15)
@given(
    start=st.integers(0, 400),
    count=st.integers(0, 6),
    prefetch=st.integers(0, 3),
    workers=st.integers(1, 3),
    packing=st.sampled_from(["concat", "document"]),
)
def test_iterating_from_any_start_gives_the_batches_of_those_steps(
    small_store, start, count, prefetch, workers, packing
):
    batches = _batches(small_store, prefetch=prefetch, workers=workers, packing=packing)
    found = list(batches.iterate(start, start + count))
    assert len(found) == count
    for offset, batch in enumerate(found):
        assert isinstance(batch, Batch)
        assert _equal(batch, batches.at(start + offset))


@settings(deadline=None)
@given(step=st.integers(0, 10**6), hosts=st.sampled_from([1, 2, 4]))
def test_the_shares_of_the_hosts_join_to_the_global_batch(small_store, step, hosts):
    batches = _batches(small_store)
    share = batches.batch_size // hosts
    parts = [batches.rows_at(step, h * share, (h + 1) * share) for h in range(hosts)]
    joined = Batch(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
    assert _equal(joined, batches.at(step))


def test_hosts_iterate_over_their_shares(small_store):
    batches = _batches(small_store)
    for step, batch in enumerate(batches.iterate(0, 3, rows=(1, 3))):
        assert _equal(batch, batches.rows_at(step, 1, 3))


@pytest.mark.parametrize("packing", ["concat", "document"])
@pytest.mark.parametrize("shuffle", ["epoch", "none"])
def test_an_epoch_trains_on_every_target_once(small_store, packing, shuffle):
    # As many steps as rows: that is batch_size epochs, whole ones.
    batches = _batches(small_store, packing=packing, shuffle=shuffle)
    weight = sum(
        batches.at(step).loss_weights.sum() for step in range(batches.num_rows)
    )
    assert weight == batches.batch_size * small_store.num_targets


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_sequential_covers_every_target_once_with_full_batches(small_store, packing):
    batches = _batches(small_store, packing=packing, batch_size=7)
    found = list(batches.sequential())
    assert {batch.tokens.shape for batch in found} == {(7, LENGTH)}
    targets = np.concatenate([b.targets[b.loss_weights > 0] for b in found])
    starts = small_store.offsets[:-1]
    assert np.array_equal(targets, np.delete(small_store.tokens, starts))
    shares = [list(batches.sequential(rows=rows)) for rows in ((0, 3), (3, 7))]
    for whole, *parts in zip(found, *shares, strict=True):
        joined = Batch(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
        assert _equal(joined, whole)


def test_an_error_in_a_worker_surfaces_with_its_message(small_store):
    batches = _batches(small_store)

    def fail(*_):
        raise RuntimeError("the disk went away")

    batches._packer.batch = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the disk went away"):
        next(batches.iterate(0, 3))


def test_closing_ends_the_threads(small_store):
    before = set(threading.enumerate())
    iterator = _batches(small_store, workers=2).iterate(0, 1000)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:  # told to end, they finish the batch they are at
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("prefetch", -1), ("workers", 0)]
)
def test_values_out_of_range_are_named(small_store, option, value):
    with pytest.raises(UserError, match=f"data.{option}"):
        _batches(small_store, **{option: value})


def test_wrong_names_are_reported_when_made(small_store):
    with pytest.raises(UserError, match="did you mean 'epoch'"):
        _batches(small_store, shuffle="epochs")
    with pytest.raises(UserError, match="unknown packing"):
        _batches(small_store, packing="none")


def test_a_corpus_makes_the_batches_its_config_asks_for(config):
    corpus = _prepare(config)
    batch = corpus.train_batches().at(0)
    assert batch.tokens.shape == (config.batch_size, LENGTH)
    validation = corpus.validation_batches()
    weight = sum(batch.loss_weights.sum() for batch in validation.sequential())
    assert weight == corpus.validation.num_targets
