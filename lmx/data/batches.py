"""The batches of a token store, by step.

There is no iterator state: any step, or any host's share of it, is computed directly,
and what runs ahead in threads (grain) is only a reader of those. Which row comes when
is in `order`, what a row is in `packing`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from lmx.core import errors
from lmx.data import order
from lmx.data.packing import Packer, Packing
from lmx.data.store import TokenStore
from lmx.inputs.batch import Batch


class Batches:
    """The batches of a store: `at(step)` is the same whoever asks, and when."""

    def __init__(
        self,
        store: TokenStore,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        shuffle: str,
        packing: Packing,
        prefetch: int,
        workers: int,
    ):
        """Raises a `UserError` for a value out of range, a `DataError` without rows."""
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("prefetch_batches", prefetch, 0),
            ("workers", workers, 1),
        ):
            if value < least:
                raise errors.UserError(
                    f"data.{name} is {value}; it must be {least} or more"
                )
        self._packer = Packer(
            store.tokens,
            store.offsets,
            context_length=context_length,
            packing=packing,
            pad_id=store.pad_id,
        )
        if not self._packer.num_rows:
            raise errors.DataError("there are no tokens; set data.path to more text")
        self._seed, self._shuffle = seed, shuffle
        self._prefetch, self._workers = prefetch, workers
        self.batch_size = batch_size
        self.rows_at(0, 0, 0)  # a wrong `shuffle` is reported here

    @property
    def num_rows(self) -> int:
        """Returns the rows of one epoch."""
        return self._packer.num_rows

    def at(self, step: int) -> Batch:
        """Returns the batch of a step, [batch_size, context_length], in O(1)."""
        return self.rows_at(step, 0, self.batch_size)

    def rows_at(self, step: int, start: int, stop: int) -> Batch:
        """Returns rows `start` to `stop` of the batch of a step: one host's share."""
        first = step * self.batch_size
        rows = order.global_rows(
            first + start,
            first + stop,
            rows=self.num_rows,
            seed=self._seed,
            shuffle=self._shuffle,
        )
        return self._packer.batch(rows)

    def iterate(
        self,
        start_step: int,
        stop_step: int,
        *,
        rows: tuple[int, int] | None = None,
    ) -> Iterator[Batch]:
        """Yields the batches of a range of steps, prepared ahead in threads.

        `rows` are those of one host. Closing the generator ends the threads; an error
        in a thread is raised here.
        """
        start, stop = rows or (0, self.batch_size)
        steps = _Steps(self, start_step, stop_step, start, stop)
        if not self._prefetch:
            yield from (steps[index] for index in range(len(steps)))
            return
        import grain

        options = grain.ReadOptions(
            num_threads=self._workers, prefetch_buffer_size=self._prefetch
        )
        iterator = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def sequential(self, *, rows: tuple[int, int] | None = None) -> Iterator[Batch]:
        """Yields every row once in stored order; the last batch is filled with padding.

        `rows` are those of one host in each batch.
        """
        start, stop = rows or (0, self.batch_size)
        for first in range(0, self.num_rows, self.batch_size):
            index = np.arange(first + start, first + stop, dtype=np.int64)
            yield self._packer.batch(np.where(index < self.num_rows, index, -1))


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A range of steps as the random-access source that grain reads."""

    batches: Batches
    start_step: int
    stop_step: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __getitem__(self, index: int) -> Batch:
        return self.batches.rows_at(self.start_step + index, self.start, self.stop)
