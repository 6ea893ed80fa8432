"""The rows of several token stores as one range of ids, and their batches.

Ids count through the stores in their order. Which id comes when is in `mixture`, what
a row of one store is in `packing`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.core import errors
from lmx.data.best_fit import BestFit
from lmx.data.packing import Packer, Packing, Waste
from lmx.data.store import TokenStore
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
        self._packers = [
            packer(store, context_length=context_length, packing=packing)
            for store in stores.values()
        ]
        self.counts = {
            name: packer.num_rows
            for name, packer in zip(stores, self._packers, strict=True)
        }
        self._first = np.concatenate([[0], np.cumsum(list(self.counts.values()))])

    def __len__(self) -> int:
        return int(self._first[-1])

    def source_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the index in `names` of the source of each row; -1 for padding."""
        return np.searchsorted(self._first, ids, "right") - 1

    def batch(self, ids: np.ndarray) -> Batch:
        """Returns the rows, int64 [B], as a batch; a row below 0 is all padding."""
        if len(self._packers) == 1:
            return self._packers[0].batch(ids)
        sources = self.source_of(ids)
        found: Batch | None = None
        for source in np.unique(sources):
            mine = sources == source
            first = self._first[max(0, source)]  # padding is any store's
            part = self._packers[max(0, source)].batch(ids[mine] - first)
            if found is None:
                shapes = [(len(ids), *field.shape[1:]) for field in part]
                found = Batch(*map(np.empty, shapes, (f.dtype for f in part)))
            for whole, field in zip(found, part, strict=True):
                whole[mine] = field
        return self._packers[0].batch(ids) if found is None else found

    @property
    def waste(self) -> Waste:
        """What the rows of all stores cost beyond the tokens they predict."""
        parts = [one.waste for one in self._packers]
        return Waste(*map(sum, zip(*parts, strict=True)))

    def documents(self, row: int) -> Sequence[int]:
        """Returns the numbers, in their store, of the documents of a row."""
        source = int(self.source_of(np.array([row]))[0])
        return self._packers[source].documents(row - int(self._first[source]))

    def ids_in_order(self, batch_size: int) -> list[np.ndarray]:
        """Returns the ids of batches that hold each row once, filled up with -1."""
        starts = range(0, len(self), batch_size)
        ids = [np.arange(first, first + batch_size, dtype=np.int64) for first in starts]
        return [np.where(part < len(self), part, -1) for part in ids]


def packer(
    store: TokenStore, *, context_length: int, packing: Packing
) -> Packer | BestFit:
    """Returns what cuts a store into rows."""
    options: dict[str, Any] = {
        "context_length": context_length,
        "packing": packing,
        "pad_id": store.pad_id,
        "weights": store.weights,
    }
    kinds: dict[str, Callable[..., Packer | BestFit]] = {
        "concat": Packer,
        "document": Packer,
        "best_fit": functools.partial(BestFit, group=store.group),
    }
    kind = errors.pick(kinds, packing, "packing")
    if store.group > 1 and packing != "best_fit":
        raise errors.UserError(
            f"data.packing={packing!r} would part examples of which {store.group} "
            "belong together, as preference pairs do; set data.packing='best_fit' "
            "(--packing=best_fit)"
        )
    return kind(store.tokens, store.offsets, **options)
