"""Row r of a token store, by arithmetic: no packing is ever planned or stored.

Both kinds of row are windows of the token stream. Every token but the BOS of each
document is the target of exactly one position with weight 1, so a pass over all rows
is a pass over all text. This module knows no order, no step and no file format.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lmx.core import errors
from lmx.inputs.batch import Batch

Packing = Literal["concat", "document"]


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
    ):
        """Takes tokens [T] and the documents' starts in it, then T: offsets [n + 1]."""
        if context_length < 1:
            raise errors.UserError(
                f"context_length is {context_length}; it must be 1 or more"
            )
        self._tokens = tokens
        self._offsets = offsets
        self._length = context_length
        self._pad_id = pad_id
        self._document = packing == "document"
        self._first_rows = np.zeros(1, np.int64)
        table = {"concat": self._count_concat, "document": self._count_document}
        self.num_rows: int = errors.pick(table, packing, "packing")()

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns the rows, int64 [B], as a batch; a row below 0 is all padding."""
        start_B, stop_B = self._windows(rows)
        index_BW = start_B[:, None] + np.arange(self._length + 1)
        # A token without a target has nothing to learn from: it is padding too.
        real_BL = index_BW[:, 1:] < stop_B[:, None]
        np.minimum(index_BW, len(self._tokens) - 1, out=index_BW)
        token_BW = self._tokens[index_BW].astype(np.int32)
        begins_BW = self._document_starts(start_B, stop_B)
        column_L = np.arange(self._length, dtype=np.int32)
        segment_BL = 1 + np.cumsum(begins_BW[:, :-1], axis=1, dtype=np.int32)
        begin_BL = np.where(begins_BW[:, :-1], column_L, np.int32(0))
        position_BL = column_L - np.maximum.accumulate(begin_BL, axis=1)
        return Batch(
            tokens=np.where(real_BL, token_BW[:, :-1], np.int32(self._pad_id)),
            targets=np.where(real_BL, token_BW[:, 1:], np.int32(self._pad_id)),
            loss_weights=(real_BL & ~begins_BW[:, 1:]).astype(np.float32),
            segment_ids=segment_BL * real_BL,
            positions=position_BL * real_BL,
        )

    def documents(self, row: int) -> range:
        """Returns the numbers of the documents that a row has tokens of."""
        start_B, stop_B = self._windows(np.array([row]))
        first = np.searchsorted(self._offsets, start_B[0], "right") - 1
        return range(int(first), int(np.searchsorted(self._offsets, stop_B[0], "left")))

    def _document_starts(self, start_B: np.ndarray, stop_B: np.ndarray) -> np.ndarray:
        """Marks, [B, L + 1], where a document begins after a row's first token."""
        first_B = np.searchsorted(self._offsets, start_B, "right")
        count_B = np.searchsorted(self._offsets, stop_B, "left") - first_B
        count_B = np.maximum(count_B, 0)
        row = np.repeat(np.arange(len(start_B)), count_B)
        before = np.cumsum(count_B) - count_B
        document = np.arange(len(row)) - before[row] + first_B[row]
        marks_BW = np.zeros((len(start_B), self._length + 1), bool)
        marks_BW[row, self._offsets[document] - start_B[row]] = True
        return marks_BW

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
