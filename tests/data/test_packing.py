from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.data.packing import Packer

PAD = 0
LENGTHS = st.lists(st.integers(2, 23), min_size=1, max_size=12)
PACKINGS = st.sampled_from(["concat", "document"])


def _stream(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are all different (from 1), so that each can be told from others."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(1, offsets[-1] + 1, dtype=np.uint16), offsets


def _packer(lengths: list[int], length: int, packing) -> Packer:
    tokens, offsets = _stream(lengths)
    return Packer(tokens, offsets, context_length=length, packing=packing, pad_id=PAD)


def _naive(lengths: list[int], length: int, packing: str) -> list[list[tuple]]:
    """The independent reference: loops over documents and tokens, one at a time.

    Yields rows of (token, target, weight, segment, position).
    """
    tokens, offsets = _stream(lengths)
    places = [  # (token, document, starts a document)
        (int(tokens[i]), number, i == offsets[number])
        for number in range(len(lengths))
        for i in range(offsets[number], offsets[number + 1])
    ]
    if packing == "concat":
        groups = [places]
    else:
        groups = [[p for p in places if p[1] == n] for n in range(len(lengths))]
    rows = []
    for group in groups:
        row: list[tuple] = []
        for place, following in itertools.pairwise(group):
            if len(row) == length:
                rows.append(row)
                row = []
            if not row:
                segment, position = 1, 0
            elif place[2]:
                segment, position = segment + 1, 0
            else:
                position += 1
            weight = 0.0 if following[2] else 1.0
            row.append((place[0], following[0], weight, segment, position))
        row += [(PAD, PAD, 0.0, 0, 0)] * (length - len(row))
        rows.append(row)
    return rows


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_rows_equal_those_of_a_naive_packer(lengths, length, packing):
    packer = _packer(lengths, length, packing)
    expected = _naive(lengths, length, packing)
    assert packer.num_rows == len(expected)
    batch = packer.batch(np.arange(packer.num_rows))
    for row in range(packer.num_rows):
        found = list(zip(*(field[row].tolist() for field in batch), strict=True))
        assert found == expected[row]


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_every_token_but_bos_is_predicted_exactly_once(lengths, length, packing):
    tokens, offsets = _stream(lengths)
    packer = _packer(lengths, length, packing)
    batch = packer.batch(np.arange(packer.num_rows))
    predicted = Counter(batch.targets[batch.loss_weights > 0].tolist())
    expected = set(tokens.tolist()) - set(tokens[offsets[:-1]].tolist())
    assert predicted == Counter(expected)


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_no_segment_spans_two_documents(lengths, length, packing):
    _, offsets = _stream(lengths)
    packer = _packer(lengths, length, packing)
    batch = packer.batch(np.arange(packer.num_rows))
    document = np.searchsorted(offsets, batch.tokens - 1, side="right")
    for row in range(packer.num_rows):
        real = batch.segment_ids[row] > 0
        pairs = set(zip(batch.segment_ids[row][real], document[row][real], strict=True))
        assert len(pairs) == len({segment for segment, _ in pairs})
        assert len(pairs) == len({number for _, number in pairs})


def test_types_and_shapes_are_those_of_the_contract():
    batch = _packer([5, 9, 4], 6, "concat").batch(np.array([0, 2]))
    assert {field.shape for field in batch} == {(2, 6)}
    kinds = [str(field.dtype) for field in batch]
    assert kinds == ["int32", "int32", "float32", "int32", "int32"]


def test_a_row_below_zero_is_padding():
    batch = _packer([5, 9, 4], 6, "concat").batch(np.array([-1, 1]))
    assert not any(field[0].any() for field in batch)
    assert batch.loss_weights[1].any()


def test_unknown_packing_and_empty_rows_are_refused():
    with pytest.raises(UserError, match="did you mean 'concat'"):
        _packer([3], 4, "concatenate")
    with pytest.raises(UserError, match="context_length is 0"):
        _packer([3], 0, "concat")
