"""Stores of parts joined are the store that one writing gives, byte for byte."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError
from lmx.data.joining import join_stores
from lmx.data.store import write_examples, write_store
from lmx.inputs.examples import Example
from lmx.inputs.tokenizers import train_tokenizer

TEXTS = ["first text", "größer 🙂", "", "x" * 300, "def f():\n    return 1\n" * 40]
PAIRS = [
    Example([5, 6, 7], [0, 0, 1], 4),
    Example([9, 8], [1, 1], 3),
    Example([3, 4, 5, 6], [0, 2, 0, 1], 2),
    Example([3, 7], [0, 1], 2),
]


def write(directory: Path, documents: list) -> Path:
    """Writes texts, or examples of which two belong together."""
    tokenizer = train_tokenizer("byte", [], 259)
    if "pairs" in str(directory):
        write_examples(directory, documents, tokenizer, group=2)
    else:
        write_store(directory, documents, tokenizer)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(("kind", "documents"), [("texts", TEXTS), ("pairs", PAIRS)])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 5), min_size=0, max_size=4).map(sorted))
def test_parts_join_to_the_whole(tmp_path_factory, kind, documents, cuts):
    folder = tmp_path_factory.mktemp(kind)
    if kind == "pairs":
        cuts = [2 * (cut // 2) for cut in cuts]
    bounds = [0, *(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [
        write(folder / str(number), documents[first:last])
        for number, (first, last) in enumerate(itertools.pairwise(bounds))
    ]
    join_stores(folder / "joined", parts)
    write(folder / "whole", documents)
    assert content(folder / "joined") == content(folder / "whole")


def test_a_damaged_part_is_named(tmp_path):
    parts = [write(tmp_path / name, TEXTS) for name in ("a", "b")]
    (parts[1] / "offsets.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"b/offsets\.npy has 0 bytes"):
        join_stores(tmp_path / "joined", parts)
