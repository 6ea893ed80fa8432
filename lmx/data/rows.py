"""The rows of several token stores as one range of ids, and their batches.

Ids count through the stores in their order. Which id comes when is in `mixture`, what
a row of one store is in `packing`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmx.core import errors
from lmx.data.best_fit import BestFit
from lmx.data.packing import Packer, Packing, Waste
from lmx.data.store import TokenStore
from lmx.data.stream import Stream
from lmx.inputs.batch import Batch


class Rows:
    """Random access to the rows of all stores, cut to one length."""

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        context_length: int,
        packing: Packing,
    ):
        """Raises a `UserError` for an unknown packing or an impossible length."""
        self.names = tuple(stores)
        self._length = context_length
        self._stream = Stream(list(stores.values()))
        group = max(self._stream.groups)
        if group > 1 and packing in ("concat", "document"):
            raise errors.UserError(
                f"data.packing={packing!r} would part examples of which {group} belong "
                "together, as preference pairs do; set data.packing='best_fit' "
                "(--packing=best_fit)"
            )
        kinds: dict[str, Callable[..., Packer | BestFit]] = {
            "concat": functools.partial(Packer, packing="concat"),
            "document": functools.partial(Packer, packing="document"),
            "best_fit": BestFit,
        }
        make = errors.pick(kinds, packing, "packing")
        self._packer = make(self._stream, context_length=context_length)
        counts = self._packer.counts
        self.counts = dict(zip(stores, counts.tolist(), strict=True))
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def source_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the index in `names` of the source of each row; -1 for padding."""
        return np.searchsorted(self._first, ids, "right") - 1

    def batch(self, ids: np.ndarray, *, length: int | None = None) -> Batch:
        """Returns the rows, int64 [B], as a batch; a row below 0 is all padding.

        With a `length` each row of 'concat' is cut: [B · L / length, length].
        """
        if length is None or length == self._length:
            layout = self._packer.layout(ids)
            return self._stream.batch(layout, rows=len(ids), length=self._length)
        assert isinstance(self._packer, Packer)
        layout = self._packer.layout(ids, length=length)
        rows = len(ids) * self._length // length
        return self._stream.batch(layout, rows=rows, length=length)

    @property
    def waste(self) -> Waste:
        """What the rows of all stores cost beyond the tokens they predict."""
        return self._packer.waste

    def documents(self, row: int) -> Sequence[int]:
        """Returns the numbers, in their store, of the documents of a row."""
        source = int(self.source_of(np.array([row]))[0])
        first = int(self._stream.documents[source])
        return [number - first for number in self._packer.documents(row)]

    def ids_in_order(self, batch_size: int) -> list[np.ndarray]:
        """Returns the ids of batches that hold each row once, filled up with -1."""
        starts = range(0, len(self), batch_size)
        ids = [np.arange(first, first + batch_size, dtype=np.int64) for first in starts]
        return [np.where(part < len(self), part, -1) for part in ids]
