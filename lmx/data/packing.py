"""Row r of a token store, by arithmetic: these packings are neither planned nor stored.

Both kinds of row are windows of the token stream. Every token but the BOS of each
document is the target of exactly one position, with weight 1 or that of the example it
is of, so a pass over all rows is a pass over all text. Rows of whole examples are in
`best_fit`. This module knows no order, no step and no file format.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from lmx.core import errors
from lmx.inputs.batch import Batch

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

    'concat': row r predicts tokens r·L + 1 … r·L + L of the stream, so rows are full
    and documents continue from one row to the next. 'document': every document starts
    a row, continues over as many as it needs, and the rest of its last row is padding.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        *,
        context_length: int,
        packing: Packing,
        pad_id: int,
        weights: np.ndarray | None = None,
    ):
        """Takes tokens [T] and the documents' starts in it, then T: offsets [n + 1].

        `weights`, uint8 [T], is of each token as a target; None is 1.
        """
        if context_length < 1:
            raise errors.UserError(
                f"context_length is {context_length}; it must be 1 or more"
            )
        self._tokens = tokens
        self._weights = weights
        self._offsets = offsets
        self._length = context_length
        self._pad_id = pad_id
        self._document = packing == "document"
        self._first_rows = np.zeros(1, np.int64)
        table = {"concat": self._count_concat, "document": self._count_document}
        self.num_rows: int = errors.pick(table, packing, "packing")()

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns the rows, int64 [B], as a batch; a row below 0 is all padding."""
        B, L = len(rows), self._length
        start_B, stop_B = self._windows(rows)
        # A token without a target has nothing to learn from: it is padding too.
        real_B = np.maximum(stop_B - start_B - 1, 0)
        token_BW = self._gather(self._tokens, start_B, np.int32)
        token_BL, target_BL = token_BW[:, :-1], token_BW[:, 1:]
        if self._weights is None:
            weight_BL = np.ones((B, L), np.float32)
        else:
            weight_BL = self._gather(self._weights, start_B, np.float32)[:, 1:]
        row_D, column_D = self._document_starts(start_B, stop_B)
        weight_BL[row_D, column_D - 1] = 0  # nothing predicts a BOS
        segment_BL, position_BL = self._segments(row_D, column_D, B)
        if (real_B < L).any():
            real_BL = np.arange(L) < real_B[:, None]
            token_BL = np.where(real_BL, token_BL, np.int32(self._pad_id))
            target_BL = np.where(real_BL, target_BL, np.int32(self._pad_id))
            for field_BL in (weight_BL, segment_BL, position_BL):
                field_BL *= real_BL
        return Batch(
            tokens=token_BL,
            targets=target_BL,
            loss_weights=weight_BL,
            segment_ids=segment_BL,
            positions=position_BL,
        )

    @property
    def waste(self) -> Waste:
        """What the rows cost beyond the tokens they predict."""
        positions = max(0, len(self._tokens) - 1)
        cut = 0
        if self._document:
            lengths = np.diff(self._offsets) - 1
            positions = int(np.maximum(lengths, 0).sum())
            cut = int(np.count_nonzero(lengths > self._length))
        return Waste(self.num_rows * self._length - positions, cut)

    def documents(self, row: int) -> range:
        """Returns the numbers of the documents that a row has tokens of."""
        start_B, stop_B = self._windows(np.array([row]))
        first = np.searchsorted(self._offsets, start_B[0], "right") - 1
        return range(int(first), int(np.searchsorted(self._offsets, stop_B[0], "left")))

    def _gather(
        self, column: np.ndarray, start_B: np.ndarray, dtype: type[np.generic]
    ) -> np.ndarray:
        """Returns L + 1 values from each start, [B, L + 1]; pads past the end."""
        width, T = self._length + 1, len(column)
        inside = T - width
        if inside < 0:
            index_BW = start_B[:, None] + np.arange(width)
            return column[np.minimum(index_BW, T - 1)].astype(dtype)
        windows = np.lib.stride_tricks.sliding_window_view(column, width)
        value_BW = windows[np.minimum(start_B, inside)].astype(dtype)
        for row in np.flatnonzero(start_B > inside):
            left = T - start_B[row]
            value_BW[row, :left] = column[start_B[row] :]
        return value_BW

    def _segments(
        self, row_D: np.ndarray, column_D: np.ndarray, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns segment ids from 1 and positions in them, [B, L].

        They are written run by run, not token by token: it is what the loader's speed
        comes from.
        """
        L = self._length
        inside = column_D < L
        row_R = np.concatenate([np.arange(rows), row_D[inside]])
        begin_R = row_R * L
        begin_R[rows:] += column_D[inside]
        order = np.argsort(begin_R)
        row_R, begin_R = row_R[order], begin_R[order]
        length_R = np.diff(begin_R, append=rows * L)
        first_R = np.searchsorted(row_R, row_R)
        segment_R = np.arange(1, len(row_R) + 1) - first_R
        segment_BL = np.repeat(segment_R.astype(np.int32), length_R)
        position_BL = np.arange(rows * L, dtype=np.int32)
        position_BL -= np.repeat(begin_R.astype(np.int32), length_R)
        return segment_BL.reshape(rows, L), position_BL.reshape(rows, L)

    def _document_starts(
        self, start_B: np.ndarray, stop_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns row and column of each document that begins after a row's start."""
        first_B = np.searchsorted(self._offsets, start_B, "right")
        count_B = np.searchsorted(self._offsets, stop_B, "left") - first_B
        count_B = np.maximum(count_B, 0)
        row_D = np.repeat(np.arange(len(start_B)), count_B)
        before_B = np.cumsum(count_B) - count_B
        document_D = np.arange(len(row_D)) - before_B[row_D] + first_B[row_D]
        return row_D, self._offsets[document_D] - start_B[row_D]

    def _windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where each row's window of up to L + 1 tokens starts and stops."""
        real_B = rows >= 0
        rows = np.maximum(rows, 0)
        if self._document:
            document_B = np.searchsorted(self._first_rows, rows, "right") - 1
            within_B = rows - self._first_rows[document_B]
            start_B = self._offsets[document_B] + within_B * self._length
            limit_B = self._offsets[document_B + 1]
        else:
            start_B = rows * self._length
            limit_B = np.full_like(rows, len(self._tokens))
        stop_B = np.minimum(start_B + self._length + 1, limit_B)
        return start_B, np.where(real_B, stop_B, start_B)

    def _count_concat(self) -> int:
        return max(0, -(-(len(self._tokens) - 1) // self._length))

    def _count_document(self) -> int:
        """Finds the first row of each document, [n + 1]."""
        rows = -(-(np.diff(self._offsets) - 1) // self._length)
        self._first_rows = np.concatenate([[0], np.cumsum(rows)])
        return int(self._first_rows[-1])
