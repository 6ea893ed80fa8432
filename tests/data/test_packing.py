from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.data.best_fit import BestFit
from lmx.data.packing import Packer
from lmx.data.store import TokenStore
from lmx.data.stream import Stream
from lmx.inputs.batch import Batch

PAD = 0
LENGTHS = st.lists(st.integers(2, 23), min_size=1, max_size=12)
PACKINGS = st.sampled_from(["concat", "document", "best_fit"])


def _stream(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are all different (from 1), so that each can be told from others."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(1, offsets[-1] + 1, dtype=np.uint16), offsets


def _weights(lengths: list[int]) -> np.ndarray:
    """Weights of examples; that of a first token is 0, as stores have it."""
    tokens, offsets = _stream(lengths)
    weights = (tokens * 7 % 3 > 0).astype(np.uint8)
    weights[offsets[:-1]] = 0
    return weights


def _stores(lengths: list[int], *, weights=None, group=1) -> Stream:
    tokens, offsets = _stream(lengths)
    about = {"source_bytes": 0, "fingerprint": "", "digest": "", "num_targets": 0}
    about |= {"pad_id": PAD, "weights": weights, "group": group}
    return Stream([TokenStore(tokens, offsets, **about)])


class _Rows:
    """A packer, and the batches that its layouts are."""

    def __init__(self, lengths, length, packing, *, weights=None, group=1, **options):
        stream = _stores(lengths, weights=weights, group=group)
        kind = BestFit if packing == "best_fit" else partial(Packer, packing=packing)
        self._stream, self._length = stream, length
        self.packer = kind(stream, context_length=length, **options)
        self.num_rows = int(self.packer.counts.sum())

    def batch(self, rows: np.ndarray) -> Batch:
        layout = self.packer.layout(rows)
        return self._stream.batch(layout, rows=len(rows), length=self._length)


def _naive(lengths, length, packing, *, weights=None) -> list[list[tuple]]:
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
            if weights is not None:
                weight *= weights[following[0] - 1]
            row.append((place[0], following[0], weight, segment, position))
        rows.append(row)
    if packing == "best_fit":
        rows = _naive_best_fit(rows, length)
    return [row + [(PAD, PAD, 0.0, 0, 0)] * (length - len(row)) for row in rows]


def _naive_best_fit(parts: list[list[tuple]], length: int) -> list[list[tuple]]:
    """Places one part after the other into the fullest row that has room."""
    rows: list[list[list[tuple]]] = []
    for part in sorted(parts, key=len, reverse=True):  # stable
        rooms = [(length - sum(map(len, row)), n) for n, row in enumerate(rows)]
        fits = [pair for pair in rooms if pair[0] >= len(part)]
        if fits:
            rows[min(fits)[1]].append(part)
        else:
            rows.append([part])
    return [
        [(t, y, w, number, p) for number, part in numbered for t, y, w, _, p in part]
        for numbered in (enumerate(sorted(row), start=1) for row in rows)
    ]


@settings(deadline=None)
@given(
    lengths=LENGTHS,
    length=st.integers(1, 17),
    packing=PACKINGS,
    weighted=st.booleans(),
)
def test_rows_equal_those_of_a_naive_Rows(lengths, length, packing, weighted):
    weights = _weights(lengths) if weighted else None
    rows = _Rows(lengths, length, packing, weights=weights)
    expected = _naive(lengths, length, packing, weights=weights)
    assert rows.num_rows == len(expected)
    batch = rows.batch(np.arange(rows.num_rows))
    for row in range(rows.num_rows):
        found = list(zip(*(field[row].tolist() for field in batch), strict=True))
        assert found == expected[row]


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_every_token_but_bos_is_predicted_exactly_once(lengths, length, packing):
    tokens, offsets = _stream(lengths)
    rows = _Rows(lengths, length, packing)
    batch = rows.batch(np.arange(rows.num_rows))
    predicted = Counter(batch.targets[batch.loss_weights > 0].tolist())
    expected = set(tokens.tolist()) - set(tokens[offsets[:-1]].tolist())
    assert predicted == Counter(expected)


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_no_segment_spans_two_documents(lengths, length, packing):
    _, offsets = _stream(lengths)
    rows = _Rows(lengths, length, packing)
    batch = rows.batch(np.arange(rows.num_rows))
    document = np.searchsorted(offsets, batch.tokens - 1, side="right")
    for row in range(rows.num_rows):
        real = batch.segment_ids[row] > 0
        pairs = set(zip(batch.segment_ids[row][real], document[row][real], strict=True))
        assert len(pairs) == len({segment for segment, _ in pairs})
        assert len(pairs) == len({number for _, number in pairs})


@settings(deadline=None)
@given(
    lengths=st.lists(
        st.tuples(*[st.integers(1, 9)] * 3).filter(lambda sizes: sum(sizes) > 3),
        min_size=1,
        max_size=9,
    ),
    length=st.integers(2, 25),
    group=st.sampled_from([1, 3]),
)
def test_what_belongs_together_is_in_one_row_or_left_out(lengths, length, group):
    """The reference places group by group, each as one part."""
    flat = [size for sizes in lengths for size in sizes]
    if group == 1:  # then they are cut, not left out, and have a target
        length = max(length, 8)
        flat = [max(2, size) for size in flat]
    tokens, offsets = _stream(flat)
    packing = _Rows(flat, length, "best_fit", group=group)
    packer = packing.packer
    units, left_out = [], 0
    for first in range(0, len(flat), group):
        members = range(first, first + group)
        size = sum(flat[m] - 1 for m in members)
        if size > length:
            left_out += 1
        else:
            units.append([(m, size) for m in members])
    rows: list[list] = []
    for unit in sorted(units, key=lambda unit: -unit[0][1]):
        rooms = [
            (length - sum(group_[0][1] for group_ in row), n)
            for n, row in enumerate(rows)
        ]
        fits = [room for room in rooms if room[0] >= unit[0][1]]
        rows[min(fits)[1]].append(unit) if fits else rows.append([unit])
    expected = [[m for unit in sorted(row) for m, _ in unit] for row in rows]
    assert packing.num_rows == len(expected)
    assert [packer.documents(row) for row in range(len(rows))] == expected
    assert packer.waste.left_out == left_out
    assert packer.waste.cut == 0
    batch = packing.batch(np.arange(len(rows)))
    assert packer.waste.padding == np.count_nonzero(batch.segment_ids == 0)
    for row, examples in enumerate(expected):
        for segment, example in enumerate(examples, start=1):
            mine = batch.segment_ids[row] == segment
            whole = tokens[offsets[example] : offsets[example + 1]]
            assert batch.tokens[row][mine].tolist() == whole[:-1].tolist()
            assert batch.targets[row][mine].tolist() == whole[1:].tolist()


def test_types_and_shapes_are_those_of_the_contract():
    batch = _Rows([5, 9, 4], 6, "concat").batch(np.array([0, 2]))
    assert {field.shape for field in batch} == {(2, 6)}
    kinds = [str(field.dtype) for field in batch]
    assert kinds == ["int32", "int32", "float32", "int32", "int32"]


def test_a_row_below_zero_is_padding():
    batch = _Rows([5, 9, 4], 6, "concat").batch(np.array([-1, 1]))
    assert not any(field[0].any() for field in batch)
    assert batch.loss_weights[1].any()


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_waste_is_what_is_counted_in_the_rows(lengths, length, packing):
    rows = _Rows(lengths, length, packing)
    batch = rows.batch(np.arange(rows.num_rows))
    assert rows.packer.waste.padding == int((batch.segment_ids == 0).sum())
    cut = 0 if packing == "concat" else sum(n - 1 > length for n in lengths)
    assert rows.packer.waste.cut == cut


@settings(deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17), packing=PACKINGS)
def test_the_documents_of_a_row_are_those_of_its_tokens(lengths, length, packing):
    _, offsets = _stream(lengths)
    rows = _Rows(lengths, length, packing)
    for row in range(rows.num_rows):
        batch = rows.batch(np.array([row]))
        ids = {*batch.tokens[0].tolist(), *batch.targets[0].tolist()} - {PAD}
        found = np.searchsorted(offsets, np.array(sorted(ids)) - 1, side="right") - 1
        assert set(rows.packer.documents(row)) == set(found.tolist())


def test_rows_of_a_window_hold_the_documents_of_that_window():
    lengths = [3, 9, 5, 4, 12, 2, 6, 7, 3, 3]
    rows = _Rows(lengths, 12, "best_fit", window=4)
    documents = [rows.packer.documents(row) for row in range(rows.num_rows)]
    assert all(len({number // 4 for number in held}) == 1 for held in documents)
    held = Counter(number for held in documents for number in held)
    assert held == Counter(range(len(lengths)))


def test_examples_of_real_lengths_fill_their_rows():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(int) + 2
    rows = _Rows(lengths.tolist(), 1024, "best_fit")
    assert rows.packer.waste.padding < 0.005 * rows.num_rows * 1024


def test_unknown_packing_and_empty_rows_are_refused():
    with pytest.raises(UserError, match="did you mean 'concat'"):
        _Rows([3], 4, "concatenate")
    with pytest.raises(UserError, match="context_length is 0"):
        _Rows([3], 0, "concat")
