from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lmx.core.errors import DataError, StorageError, UserError
from lmx.core.schema import DataConfig
from lmx.data import pipeline, store
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
    return prepare(config, context_length=LENGTH, seed=0, steps=50, report=report)


def _equal(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _documents(split: TokenStore, corpus: Corpus) -> list[str]:
    decode = corpus.tokenizer.decode
    return [decode(split.document(i)) for i in range(split.num_documents)]


def test_both_splits_together_are_the_source_and_nothing_is_in_both(config):
    corpus = _prepare(config)
    train = _documents(corpus.sources[0].train, corpus)
    validation = _documents(corpus.sources[0].validation, corpus)
    assert Counter(train + validation) == Counter(map(_text, range(COUNT)))
    assert corpus.validation_text() == "".join(validation).encode()
    assert corpus.sources[0].validation.source_bytes == len(corpus.validation_text())


def test_the_summary_counts_what_there_is(config):
    corpus = _prepare(config)
    for name, split in (
        ("train", corpus.sources[0].train),
        ("validation", corpus.sources[0].validation),
    ):
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
    assert np.array_equal(again.sources[0].train.tokens, first.sources[0].train.tokens)
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
        c.sources[0].train.num_documents + c.sources[0].validation.num_documents
        for c in (first, second)
    ]
    assert documents == [COUNT, COUNT + 1]


def test_a_half_written_directory_is_ignored(config):
    directory = _prepare(config).directory
    shutil.copytree(directory, directory.with_name(f".partial-{directory.name}-0"))
    shutil.rmtree(directory)
    assert _prepare(config).sources[0].train.num_documents > 0


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "train/tokens.bin", "validation.txt", "tokenizer/meta.json"],
)
def test_damaged_cache_is_said_and_built_anew(config, name):
    first = _prepare(config)
    tokens = first.sources[0].train.tokens.tolist()
    for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, 5)):
        damage(first.directory / name)
        said: list[str] = []
        assert (
            _prepare(config, report=said.append).sources[0].train.tokens.tolist()
            == tokens
        )
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
    assert (
        corpus.sources[0].train.num_documents,
        corpus.sources[0].validation.num_documents,
    ) == (1, 1)


def test_a_corpus_makes_the_batches_its_config_asks_for(config):
    corpus = _prepare(config)
    batch = corpus.train_batches().at(0)
    assert batch.tokens.shape == (config.batch_size, LENGTH)
    rows = corpus.validation_rows
    found = map(rows.batch, corpus.validation_ids(None))
    weight = sum(batch.loss_weights.sum() for batch in found)
    assert weight == corpus.sources[0].validation.num_targets


def test_a_sample_of_the_validation_rows_is_some_of_them_once(config):
    corpus = _prepare(config)
    found = np.concatenate(corpus.validation_ids(2))
    assert len(set(found.tolist())) == 2 * config.batch_size
    assert 0 <= found.min() <= found.max() < len(corpus.validation_rows)
    assert found.tolist() != sorted(found)
    everything = corpus.validation_ids(10**6)
    assert [part.tolist() for part in everything] == [
        part.tolist() for part in corpus.validation_ids(None)
    ]


def test_a_mixture_that_cannot_be_is_refused_when_data_is_prepared(config):
    with pytest.raises(UserError, match=r"unknown source in data\.mixture 'wiki'"):
        _prepare(dataclasses.replace(config, mixture=("wiki=1",)))
    with pytest.raises(UserError, match="take at most"):
        _prepare(dataclasses.replace(config, max_epochs=("0.01",)))
