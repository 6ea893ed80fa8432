"""The tokens of several stores as one stream, end to end, and batches read of it.

Places in the stream count through the stores in their order. What is cut where is in
`packing` and `best_fit`: they know no store, a batch is of as many as it likes, and all
that is done token by token is done once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmx.data.remote import Numbers, RemoteNumbers
from lmx.data.store import TokenStore
from lmx.inputs.batch import Batch


class Layout(NamedTuple):
    """What stands where in a batch of B rows of L positions.

    Places in the batch are row · L + column, ascending. What no piece covers, at the
    end of a row, is padding.
    """

    begin_P: np.ndarray
    """The first place of each piece of the stream."""
    start_P: np.ndarray
    """Its first token in the stream."""
    length_P: np.ndarray
    """Its positions, above 0: so many tokens are read, and the one after each is its
    target."""
    begin_D: np.ndarray
    """Where a segment begins that is not the first of its row."""
    unpredicted_N: np.ndarray
    """Places whose target, the first token of a document, is not learned."""


class Stream:
    """The tokens, weights and documents of stores; opened, not read."""

    def __init__(self, stores: Sequence[TokenStore]):
        """Takes stores of one tokenizer, at least one."""
        self.bounds = _ends([store.num_tokens for store in stores])
        """Where each store begins in the stream, then the end: int64 [stores + 1]."""
        self.documents = _ends([store.num_documents for store in stores])
        """The number of the first document of each store, then of all."""
        self.offsets = stores[0].offsets
        """Where each document begins in the stream, then the end."""
        if len(stores) > 1:
            each = zip(stores, self.bounds, strict=False)
            starts = [store.offsets[:-1] + bound for store, bound in each]
            self.offsets = np.concatenate([*starts, self.bounds[-1:]])
        self.groups = [store.group for store in stores]
        """How many successive documents of each store belong together."""
        # Padding is a store more, of one token.
        pad_id, weights = stores[0].pad_id, [store.weights for store in stores]
        self._tokens = _Values([*(store.tokens for store in stores), pad_id])
        self._weights = None
        if any(column is not None for column in weights):
            self._weights = _Values([*(1 if w is None else w for w in weights), 0])

    def batch(self, layout: Layout, *, rows: int, length: int) -> Batch:
        """Returns what a layout says, as int32 and float32 [rows, length]."""
        begin_P, start_P, length_P, begin_D, unpredicted_N = layout
        used_B = np.bincount(begin_P // length, length_P, rows).astype(np.int64)
        short_S = np.flatnonzero(used_B < length)
        padding_S, end_S = short_S * length + used_B[short_S], (short_S + 1) * length

        store_P = np.searchsorted(self.bounds, start_P, "right") - 1
        start_P = start_P - self.bounds[store_P]
        for values in filter(None, (self._tokens, self._weights)):
            values.fetch(store_P, start_P, start_P + length_P + 1)
        last_P = self._tokens.at(store_P, start_P + length_P)
        end_P = begin_P + length_P
        if len(padding_S):
            order = np.argsort(np.concatenate([begin_P, padding_S]))
            none_S = np.zeros_like(padding_S)
            store_P = np.concatenate([store_P, none_S + len(self.bounds) - 1])[order]
            start_P = np.concatenate([start_P, none_S])[order]
            length_P = np.concatenate([length_P, end_S - padding_S])[order]
        token_N = self._tokens.read(store_P, start_P, length_P).astype(np.int32)
        target_N = np.empty_like(token_N)
        target_N[:-1] = token_N[1:]
        target_N[end_S - 1] = token_N[end_S - 1]
        target_N[end_P - 1] = last_P
        if self._weights is None:
            weight_N = np.ones(rows * length, np.float32)
        else:
            weight_N = self._weights.read(store_P, start_P + 1, length_P)
            weight_N = weight_N.astype(np.float32)
        weight_N[unpredicted_N] = 0
        segment_N, position_N = segments(begin_D, padding_S, rows=rows, length=length)
        for begin, end in zip(padding_S.tolist(), end_S.tolist(), strict=True):
            weight_N[begin:end] = position_N[begin:end] = 0
        fields = token_N, target_N, weight_N, segment_N, position_N
        return Batch(*(field.reshape(rows, length) for field in fields))


class _Values:
    """A number for each token of several stores; of a store, one may stand for all."""

    def __init__(self, columns: Sequence[Numbers | int]):
        arrays = [column for column in columns if not isinstance(column, int)]
        self._dtype = arrays[0].dtype if arrays else np.dtype(np.uint8)
        assert {array.dtype for array in arrays} <= {self._dtype}
        # Parts of memory views are made and joined twice as fast as those of arrays.
        self._views = [
            memoryview(np.asarray(column)) if isinstance(column, np.ndarray) else column
            for column in columns
        ]
        self._remote = {
            store: column
            for store, column in enumerate(columns)
            if isinstance(column, RemoteNumbers)
        }
        self._constant = np.array([isinstance(column, int) for column in columns])

    def fetch(
        self, store_P: np.ndarray, start_P: np.ndarray, stop_P: np.ndarray
    ) -> None:
        """Reads pieces of files that are elsewhere, all at once, to be at hand."""
        wanted = set()
        for store, column in self._remote.items():
            mine_P = store_P == store
            wanted |= column.parts(start_P[mine_P], stop_P[mine_P])
        if wanted:
            next(iter(self._remote.values())).blocks.fetch(wanted)

    def at(self, store_P: np.ndarray, place_P: np.ndarray) -> list[int]:
        """Returns single values, of stores with a value for each token."""
        each = zip(store_P.tolist(), place_P.tolist(), strict=True)
        return [self._views[store][place] for store, place in each]

    def read(
        self, store_P: np.ndarray, start_P: np.ndarray, length_P: np.ndarray
    ) -> np.ndarray:
        """Returns the values of pieces of stores, one after the other."""
        longest = int(length_P.max(initial=0))
        views = [
            memoryview(np.full(longest, view, self._dtype))
            if isinstance(view, int)
            else view
            for view in self._views
        ]
        start_P = np.where(self._constant[store_P], 0, start_P)
        each = store_P.tolist(), start_P.tolist(), (start_P + length_P).tolist()
        parts = [views[k][start:stop] for k, start, stop in zip(*each, strict=True)]
        return np.frombuffer(b"".join(parts), self._dtype)


def segments(
    begin_D: np.ndarray, padding_S: np.ndarray, *, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns segment ids from 1 in each row and positions in them, at each place.

    A segment begins with each row and at each of `begin_D`; from a place of `padding_S`
    to the end of its row both are 0. They are written run by run, not token by token:
    it is what the loader's speed comes from.
    """
    size = rows * length
    begin_R = np.concatenate([np.arange(0, size, length), begin_D, padding_S])
    begin_R.sort()
    row_R, column_R = np.divmod(begin_R, length)
    segment_R = np.arange(1, len(row_R) + 1) - np.searchsorted(row_R, row_R)
    segment_R[np.searchsorted(begin_R, padding_S, "right") - 1] = 0
    length_R = np.diff(begin_R, append=size)
    segment_N = np.repeat(segment_R.astype(np.int32), length_R)
    position_N = np.repeat(column_R.astype(np.int32), length_R)
    position_BL = position_N.reshape(rows, length)
    np.subtract(np.arange(length, dtype=np.int32), position_BL, out=position_BL)
    return segment_N, position_N


def _ends(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
