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

from collections import defaultdict

import numpy as np

from lmx.core import errors
from lmx.data.packing import Waste
from lmx.inputs.batch import Batch

WINDOW = 1 << 16  # pieces that rows are filled from
NO_ROWS = np.zeros(0, np.int64)


class BestFit:
    """Cuts a store of examples into rows of `context_length` positions."""

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        *,
        context_length: int,
        pad_id: int,
        weights: np.ndarray | None = None,
        packing: str = "best_fit",
        group: int = 1,
        window: int = WINDOW,
    ):
        """Takes tokens [T] and the examples' starts in it, then T: offsets [n + 1].

        `weights`, uint8 [T], is of each token as a target; None is 1. Of examples
        `group` belong together.
        """
        if context_length < 1:
            raise errors.UserError(
                f"context_length is {context_length}; it must be 1 or more"
            )
        assert packing == "best_fit"
        self._tokens, self._weights, self._offsets = tokens, weights, offsets
        self._length, self._pad_id = context_length, pad_id
        self._group, self._left_out = group, 0
        if group == 1:
            starts, lengths = pieces(offsets, context_length)
            sizes = lengths
        else:
            starts, lengths = members(offsets, group, context_length)
            sizes = lengths.reshape(-1, group).sum(axis=1)
            self._left_out = len(offsets) // group - len(sizes)
        order, firsts = plan(sizes, context_length, window=window)
        order = (order[:, None] * group + np.arange(group)).ravel()
        self._starts, self._lengths = starts[order], lengths[order].astype(np.int32)
        # Row r has the pieces from self._firsts[r] to self._firsts[r + 1].
        self._firsts = firsts * group
        self.num_rows = len(self._firsts) - 1

    @property
    def waste(self) -> Waste:
        """What the rows cost beyond the tokens they predict."""
        used = int(self._lengths.sum(dtype=np.int64))
        padding = self.num_rows * self._length - used
        if self._group > 1:
            return Waste(padding, 0, self._left_out)
        cut = int(np.count_nonzero(np.diff(self._offsets) - 1 > self._length))
        return Waste(padding, cut)

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns the rows, int64 [B], as a batch; a row below 0 is all padding."""
        B, L = len(rows), self._length
        row_P, piece_P = self._pieces(rows)
        length_P = self._lengths[piece_P].astype(np.int64)
        ends_P = np.cumsum(length_P)
        within_N = np.arange(int(length_P.sum())) - np.repeat(
            ends_P - length_P, length_P
        )
        source_N = np.repeat(self._starts[piece_P], length_P) + within_N
        # Pieces of a row follow each other, so those of all rows do but for padding.
        used_B = np.bincount(row_P, length_P, B).astype(np.int64)
        real_BL = np.arange(L) < used_B[:, None]
        first_P = np.searchsorted(row_P, row_P)
        segment_P = np.arange(1, len(row_P) + 1) - first_P
        weight_N: np.ndarray | float = 1.0
        if self._weights is not None:
            weight_N = self._weights[source_N + 1]

        def spread(values: np.ndarray | float, padding: float, dtype) -> np.ndarray:
            field_BL = np.full((B, L), padding, dtype)
            field_BL[real_BL] = values
            return field_BL

        return Batch(
            tokens=spread(self._tokens[source_N], self._pad_id, np.int32),
            targets=spread(self._tokens[source_N + 1], self._pad_id, np.int32),
            loss_weights=spread(weight_N, 0, np.float32),
            segment_ids=spread(np.repeat(segment_P, length_P), 0, np.int32),
            positions=spread(within_N, 0, np.int32),
        )

    def documents(self, row: int) -> list[int]:
        """Returns the numbers of the examples that a row has tokens of."""
        _, piece_P = self._pieces(np.array([row]))
        found = np.searchsorted(self._offsets, self._starts[piece_P], "right") - 1
        return found.tolist()

    def _pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of `rows` each of their pieces is in, and its number."""
        real_B = rows >= 0
        first_B = self._firsts[np.maximum(rows, 0)]
        last_B = self._firsts[np.minimum(np.maximum(rows, 0) + 1, self.num_rows)]
        count_B = np.where(real_B, last_B - first_B, 0)
        row_P = np.repeat(np.arange(len(rows)), count_B)
        before_B = np.cumsum(count_B) - count_B
        return row_P, np.arange(len(row_P)) - before_B[row_P] + first_B[row_P]


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
