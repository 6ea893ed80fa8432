"""The batches of training, by step.

There is no iterator state: any step, or any host's share of it, is computed directly,
and what runs ahead in threads (grain) is only a reader of those. Which row comes when
is in `mixture`, what a row is in `rows`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from lmx.core import errors
from lmx.data.mixture import Mixture
from lmx.data.rows import Rows
from lmx.data.stages import RowLengths
from lmx.inputs.batch import Batch

BLOCK, BLOCKS_KEPT = 8192, 4  # rows whose ids are computed at once
NO_ROWS = np.zeros(0, np.int64)


class Batches:
    """The batches of a mixture: `at(step)` is the same whoever asks, and when."""

    def __init__(
        self,
        rows: Rows,
        mixture: Mixture,
        *,
        batch_size: int,
        prefetch: int,
        workers: int,
        lengths: RowLengths | None = None,
    ):
        """Raises a `UserError` for a value out of range."""
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("prefetch_batches", prefetch, 0),
            ("workers", workers, 1),
        ):
            if value < least:
                raise errors.UserError(
                    f"data.{name} is {value}; it must be {least} or more"
                )
        self.rows = rows
        self.mixture = mixture
        # One row costs nearly what thousands do; steps that follow share a block.
        self._block = functools.lru_cache(maxsize=BLOCKS_KEPT)(
            lambda number: mixture.rows(number * BLOCK, (number + 1) * BLOCK)
        )
        self.lengths = lengths
        self._prefetch, self._workers = prefetch, workers
        self.batch_size = batch_size

    def at(self, step: int) -> Batch:
        """Returns the batch of a step, [batch_size, context_length], in O(1).

        Where rows are cut to l, it is [batch_size · context_length / l, l].
        """
        return self.rows_at(step, 0, self.batch_size)

    def rows_at(self, step: int, start: int, stop: int) -> Batch:
        """Returns rows `start` to `stop` of the batch of a step: one host's share.

        They count as they are before they are cut, and a row is cut on its own.
        """
        length = None if self.lengths is None else self.lengths.at(step)
        return self.rows.batch(self.ids_at(step, start, stop), length=length)

    def ids_at(self, step: int, start: int, stop: int) -> np.ndarray:
        """Returns the ids, int64 [stop - start], of rows of the batch of a step."""
        first = step * self.batch_size + start
        stop += step * self.batch_size
        numbers = range(first // BLOCK, -(-stop // BLOCK))
        blocks = [self._block(number) for number in numbers]
        offset = first // BLOCK * BLOCK
        return np.concatenate([*blocks, NO_ROWS])[first - offset : stop - offset]

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
