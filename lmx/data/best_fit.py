"""Rows of whole examples: best-fit decreasing, planned when a store is opened.

An example takes a position for each token that it predicts. The longest come first,
and each goes to the fullest row that has room for it, of two the earlier; a new row is
begun where none has (Johnson, "Near-optimal bin packing algorithms", 1973; for language
models Ding et al., "Fewer truncations improve language modeling", 2024). What is longer
than a row is cut as 'document' does: full rows, and a rest that is packed. Rows are
filled from a window of so many examples, so neighbours in the store stay near; in a row
they are in the order of the store.

Examples that belong together, such as a preference pair, are placed as one: they follow
each other in a row, as segments 2k-1 and 2k. Groups longer than a row are left out.

The plan depends on the lengths alone, and takes O(n log n): examples of one length are
placed together. It holds 20 bytes an example; no order, no step is known here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np

from lmx.data.packing import Waste, check_length
from lmx.data.stream import Layout, Stream

WINDOW = 1 << 16  # pieces that rows are filled from
NO_ROWS = np.zeros(0, np.int64)


class BestFit:
    """Cuts a stream of examples into rows of `context_length` positions."""

    def __init__(self, stream: Stream, *, context_length: int, window: int = WINDOW):
        """Plans the rows of each store; raises a `UserError` for a length below 1."""
        check_length(context_length)
        self._stream, self._length = stream, context_length
        starts, lengths, held, counts = [], [], [NO_ROWS], []
        cut = left_out = 0
        stores = zip(
            itertools.pairwise(stream.documents.tolist()), stream.groups, strict=True
        )
        for (first, last), group in stores:
            offsets = stream.offsets[first : last + 1]
            if group == 1:
                start, length = pieces(offsets, context_length)
                sizes = length
                cut += int(np.count_nonzero(np.diff(offsets) - 1 > context_length))
            else:
                start, length = members(offsets, group, context_length)
                sizes = length.reshape(-1, group).sum(axis=1)
                left_out += (last - first) // group - len(sizes)
            order, firsts = plan(sizes, context_length, window=window)
            order = (order[:, None] * group + np.arange(group)).ravel()
            starts.append(start[order])
            lengths.append(length[order].astype(np.int32))
            held.append(np.diff(firsts) * group)
            counts.append(len(firsts) - 1)
        self._starts, self._lengths = np.concatenate(starts), np.concatenate(lengths)
        # Row r has the pieces from self._firsts[r] to self._firsts[r + 1].
        self._firsts = np.concatenate([[0], np.cumsum(np.concatenate(held))])
        self.counts = np.array(counts)
        """How many rows each store has."""
        used = int(self._lengths.sum(dtype=np.int64))
        self.waste = Waste(sum(counts) * context_length - used, cut, left_out)
        """What the rows cost beyond the tokens they predict."""

    def layout(self, rows: np.ndarray) -> Layout:
        """Returns what is in the rows, int64 [B]; a row below 0 is all padding."""
        row_P, piece_P = self._pieces(rows)
        length_P = self._lengths[piece_P].astype(np.int64)
        before_P = np.cumsum(length_P) - length_P
        first_P = np.searchsorted(row_P, row_P)
        begin_P = row_P * self._length + before_P - before_P[first_P]
        # A piece without a target, at the end of a full row, would be of the next.
        later_P = np.arange(len(row_P)) > first_P
        later_P &= begin_P < (row_P + 1) * self._length
        used_P = length_P > 0
        return Layout(
            begin_P=begin_P[used_P],
            start_P=self._starts[piece_P[used_P]],
            length_P=length_P[used_P],
            begin_D=begin_P[later_P],
            unpredicted_N=NO_ROWS,  # each piece ends with a target of its own
        )

    def documents(self, row: int) -> list[int]:
        """Returns the numbers of the examples that a row has tokens of."""
        _, piece_P = self._pieces(np.array([row]))
        offsets = self._stream.offsets
        return (np.searchsorted(offsets, self._starts[piece_P], "right") - 1).tolist()

    def _pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of `rows` each of their pieces is in, and its number."""
        first_B = self._firsts[np.maximum(rows, 0)]
        last_B = self._firsts[np.maximum(rows, -1) + 1]
        count_B = np.where(rows < 0, 0, last_B - first_B)
        row_P = np.repeat(np.arange(len(rows)), count_B)
        before_B = np.cumsum(count_B) - count_B
        return row_P, np.arange(len(row_P)) + (first_B - before_B)[row_P]


def pieces(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and length of what is packed: examples, or cuts of long ones.

    A start is of the first token that is read; the length counts targets. An example
    without a target has no piece.
    """
    targets = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-targets // length)
    example = np.repeat(np.arange(len(targets)), counts)
    before = np.cumsum(counts) - counts
    within = (np.arange(len(example)) - before[example]) * length
    return offsets[example] + within, np.minimum(targets[example] - within, length)


def members(
    offsets: np.ndarray, group: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and length, as `pieces` does, of examples whose group fits a row.

    `group` successive examples are one; one without a target has its place among them.
    """
    starts = offsets[:-1].reshape(-1, group)
    targets = np.maximum(np.diff(offsets) - 1, 0).reshape(-1, group)
    total = targets.sum(axis=1)
    fits = (total > 0) & (total <= length)
    return starts[fits].ravel(), targets[fits].ravel()


def plan(
    lengths: np.ndarray, size: int, *, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pieces in the order of the rows, and where each row starts, then all.

    Rows have room for `size`, and are filled from so many neighbours as `window` says.
    """
    placed, firsts = [NO_ROWS], [np.zeros(1, np.int64)]
    for begin in range(0, len(lengths), window):
        rows = best_fit(lengths[begin : begin + window], size)
        placed.append(begin + np.argsort(rows, kind="stable"))
        firsts.append(firsts[-1][-1] + np.cumsum(np.bincount(rows)))
    return np.concatenate(placed), np.concatenate(firsts)


def best_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns the row of each piece; rows have room for `size`, pieces are 1 to that.

    As if each were placed on its own, the longest first, then in their order: pieces of
    one length go to rows of one room together, as many to each as there is room for.
    """
    rows = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    values, firsts = np.unique(-lengths[order], return_index=True)
    room: dict[int, list[np.ndarray]] = defaultdict(list)
    open_rooms = 0  # bit r is set where rows with room r are
    num_rows = 0
    for value, pieces_ in zip(-values, np.split(order, firsts[1:]), strict=True):
        length = int(value)
        while len(pieces_):
            fits = open_rooms >> length
            if fits:
                left = length + (fits & -fits).bit_length() - 1
                found = np.sort(np.concatenate(room.pop(left)))
                open_rooms ^= 1 << left
            else:
                left = size
                found = num_rows + np.arange(-(-len(pieces_) // (left // length)))
                num_rows += len(found)
            each = left // length
            used = min(len(found), -(-len(pieces_) // each))
            taken = np.repeat(found[:used], each)[: len(pieces_)]
            rows[pieces_[: len(taken)]] = taken
            pieces_ = pieces_[len(taken) :]
            last = len(taken) - (used - 1) * each
            for part, rest in (
                (found[used:], left),
                (found[: used - 1], left - each * length),
                (found[used - 1 : used], left - last * length),
            ):
                if len(part) and rest:
                    room[rest].append(part)
                    open_rooms |= 1 << rest
    return rows
