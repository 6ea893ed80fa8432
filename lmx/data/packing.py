"""Row r of a stream of tokens, by arithmetic: these packings are not planned or stored.

Both kinds of row are windows of the stream. Every token but the BOS of each document is
the target of exactly one position, with weight 1 or that of the example it is of, so a
pass over all rows is a pass over all text. Rows of whole examples are in `best_fit`.
This module knows no order, no step and no file format.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from lmx.core import errors
from lmx.data.stream import Layout, Stream

Packing = Literal["concat", "document", "best_fit"]


class Waste(NamedTuple):
    """What rows cost: positions of padding, and documents that do not fit in one.

    These are cut; groups of what belongs together are left out.
    """

    padding: int
    cut: int
    left_out: int = 0


class Packer:
    """Cuts a stream of documents into rows of `context_length` positions.

    'concat': row r of a store predicts tokens r·L + 1 … r·L + L of it, so rows are full
    and documents continue from one row to the next. 'document': every document starts
    a row, continues over as many as it needs, and the rest of its last row is padding.
    """

    def __init__(self, stream: Stream, *, context_length: int, packing: Packing):
        """Raises a `UserError` for an unknown packing or an impossible length."""
        check_length(context_length)
        self._stream = stream
        self._length = context_length
        self._document = errors.pick(
            {"concat": False, "document": True}, packing, "packing"
        )
        # What begins a row of its own, and the number of the first row of each.
        self._starts = stream.offsets if self._document else stream.bounds
        rows = -(-(np.diff(self._starts) - 1) // context_length)
        self._first_rows = np.concatenate([[0], np.cumsum(np.maximum(rows, 0))])
        ends = stream.documents if self._document else slice(None)
        self.counts = np.diff(self._first_rows[ends])
        """How many rows each store has."""

    def layout(self, rows: np.ndarray, *, length: int | None = None) -> Layout:
        """Returns what is in the rows, int64 [B]; a row below 0 is all padding.

        Rows of 'concat' may be cut into pieces of a `length` that divides theirs: each
        is then a row, [B · L / length], as if rows had been so long from the first.
        """
        start_B, stop_B = self._windows(rows)
        length = length or self._length
        if length != self._length:
            assert not self._document
            assert self._length % length == 0
            cuts = np.arange(0, self._length, length)
            start_B = (start_B[:, None] + cuts).ravel()
            stop_B = np.repeat(stop_B, len(cuts)).clip(start_B, start_B + length + 1)
        # A token without a target has nothing to learn from: it is padding too.
        length_B = np.maximum(stop_B - start_B - 1, 0)
        first_B = np.searchsorted(self._stream.offsets, start_B, "right")
        last_B = np.searchsorted(self._stream.offsets, stop_B, "left")
        count_B = np.maximum(last_B - first_B, 0)
        row_D = np.repeat(np.arange(len(start_B)), count_B)
        before_B = np.cumsum(count_B) - count_B
        document_D = np.arange(len(row_D)) + (first_B - before_B)[row_D]
        begin_B = np.arange(len(start_B)) * length
        begin_D = self._stream.offsets[document_D] + (begin_B - start_B)[row_D]
        used = length_B > 0
        return Layout(
            begin_P=begin_B[used],
            start_P=start_B[used],
            length_P=length_B[used],
            begin_D=begin_D[begin_D % length > 0],
            unpredicted_N=begin_D - 1,  # nothing predicts a BOS
        )

    @property
    def waste(self) -> Waste:
        """What the rows cost beyond the tokens they predict."""
        lengths = np.maximum(np.diff(self._starts) - 1, 0)
        padding = int(self._first_rows[-1]) * self._length - int(lengths.sum())
        cut = np.count_nonzero(lengths > self._length) if self._document else 0
        return Waste(padding, int(cut))

    def documents(self, row: int) -> range:
        """Returns the numbers of the documents that a row has tokens of."""
        start_B, stop_B = self._windows(np.array([row]))
        offsets = self._stream.offsets
        first = np.searchsorted(offsets, start_B[0], "right") - 1
        return range(int(first), int(np.searchsorted(offsets, stop_B[0], "left")))

    def _windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where each row's window of up to L + 1 tokens starts and stops."""
        real_B = rows >= 0
        rows = np.maximum(rows, 0)
        whole_B = np.searchsorted(self._first_rows, rows, "right") - 1
        within_B = rows - self._first_rows[whole_B]
        start_B = self._starts[whole_B] + within_B * self._length
        stop_B = np.minimum(start_B + self._length + 1, self._starts[whole_B + 1])
        return start_B, np.where(real_B, stop_B, start_B)


def check_length(context_length: int) -> None:
    """Raises a `UserError` for rows that could hold nothing."""
    if context_length < 1:
        raise errors.UserError(
            f"context_length is {context_length}; it must be 1 or more"
        )
