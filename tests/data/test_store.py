from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError, StorageError
from lmx.data import store
from lmx.data.store import (
    TokenStore,
    atomic_directory,
    write_examples,
    write_store,
)
from lmx.inputs.examples import Example
from lmx.inputs.tokenizers import train_tokenizer

TEXTS = ["first text", "größer 🙂", "", "x" * 300, "def f():\n    return 1\n" * 40]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("bpe", TEXTS, 300)


@pytest.fixture
def directory(tmp_path, tokenizer):
    write_store(tmp_path / "store", TEXTS, tokenizer)
    return tmp_path / "store"


def test_documents_come_back_between_bos_and_eos(directory, tokenizer):
    found = TokenStore.open(directory)
    assert found.num_documents == len(TEXTS)
    assert found.source_bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.num_targets == found.num_tokens - len(TEXTS)
    assert found.tokens.dtype == np.uint16
    for number, text in enumerate(TEXTS):
        ids = found.document(number).tolist()
        assert ids == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def test_examples_come_back_with_their_weights(tmp_path, tokenizer):
    examples = [
        Example([5, 6, 7], [0, 0, 1], 4),
        Example([9, 8], [1, 1], 3),  # nothing predicts the first
        Example([3, 4, 5, 6], [0, 2, 0, 1], 2),
    ]
    write_examples(tmp_path / "a", examples, tokenizer)
    found = TokenStore.open(tmp_path / "a")
    assert found.tokens.tolist() == [5, 6, 7, 9, 8, 3, 4, 5, 6]
    assert found.weights.tolist() == [0, 0, 1, 0, 1, 0, 2, 0, 1]
    assert found.offsets.tolist() == [0, 3, 5, 9]
    assert (found.num_targets, found.source_bytes) == (4, 9)
    assert TokenStore.open(tmp_path / "a").digest == found.digest
    changed = [*examples[:2], Example([3, 4, 5, 6], [0, 1, 0, 1], 2)]
    write_examples(tmp_path / "b", changed, tokenizer)
    assert TokenStore.open(tmp_path / "b").digest != found.digest


def test_a_text_store_has_no_weights(directory):
    assert TokenStore.open(directory).weights is None
    assert not (directory / "weights.bin").exists()


def test_damaged_weights_are_named(tmp_path, tokenizer):
    write_examples(tmp_path / "a", [Example([5, 6], [0, 1], 1)], tokenizer)
    (tmp_path / "a" / "weights.bin").write_bytes(b"\0\0")
    with pytest.raises(DataError, match=r"weights\.bin is damaged"):
        TokenStore.open(tmp_path / "a")


def test_progress_ends_at_all_bytes(tmp_path, tokenizer):
    seen: list[int] = []
    write_store(tmp_path / "store", TEXTS, tokenizer, progress=seen.append)
    assert seen[-1] == sum(len(text.encode()) for text in TEXTS)


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(st.sampled_from("a1é .'\n\r\t_")).map(lambda text: text * 20),
    size=st.integers(1, 50),
    kind=st.sampled_from(["byte", "bpe", "unigram", "word", "char"]),
)
def test_a_long_text_encodes_in_parts_as_it_does_whole(text, size, kind):
    tokenizer = _TOKENIZERS.setdefault(kind, train_tokenizer(kind, TEXTS, 300))
    parts = list(store._parts(text, size))
    assert "".join(parts) == text
    joined = [index for part in parts for index in tokenizer.encode(part)]
    assert joined == tokenizer.encode(text)


_TOKENIZERS: dict = {}


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy"])
def test_damage_is_named(directory, name):
    whole = (directory / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 4
    for content, reason in ((bytes(flipped), "sha256"), (whole[:-1], "bytes")):
        (directory / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} .*{reason}"):
            TokenStore.open(directory)
    (directory / name).unlink()
    with pytest.raises(DataError, match="no readable data"):
        TokenStore.open(directory)


def test_a_broken_manifest_is_no_store(directory):
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    for content in ("", "[]", "{}", json.dumps({**manifest, "format": 99, "seal": ""})):
        file.write_text(content)
        with pytest.raises(DataError, match="run again to build it anew"):
            TokenStore.open(directory)


@pytest.mark.parametrize("name", ["../other", "/etc/hostname"])
def test_files_of_a_store_lie_in_it(directory, name):
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text()) | {"seal": ""}
    manifest["files"][name] = manifest["files"]["tokens.bin"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="which lies elsewhere"):
        TokenStore.open(directory)


def _fail_midway(final: Path, error: BaseException) -> None:
    with atomic_directory(final) as partial:
        (partial / "half").write_text("written")
        raise error


def test_nothing_is_left_of_a_build_that_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fail_midway(tmp_path / "final", KeyboardInterrupt())
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"No space left.*free some space"):
        _fail_midway(tmp_path / "final", full)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(StorageError, match="LMX_CACHE"),
        atomic_directory(tmp_path / "file" / "final"),
    ):
        pass


def test_of_two_builders_the_first_wins_and_both_end_well(tmp_path):
    with atomic_directory(tmp_path / "final") as slow:
        (slow / "who").write_text("slow")
        with atomic_directory(tmp_path / "final") as quick:
            (quick / "who").write_text("quick")
    assert (tmp_path / "final" / "who").read_text() == "quick"
    assert os.listdir(tmp_path) == ["final"]


def test_what_a_killed_build_left_goes_after_a_day(tmp_path):
    old, new = tmp_path / ".partial-a-1", tmp_path / ".partial-b-2"
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, time.time() - 2 * store.STALE_SECONDS))
    with atomic_directory(tmp_path / "final"):
        pass
    assert sorted(os.listdir(tmp_path)) == [new.name, "final"]
