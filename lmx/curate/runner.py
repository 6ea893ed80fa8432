"""Where the work of a build is done: here, in some processes, or by Apache Beam.

A stage is one function over items, each of which leaves its result in files of the
build's folder, whole or not at all. So a runner has nothing to carry but the items,
a stage that was cut short does only what is missing, and the result cannot depend on
who did what.
"""

from __future__ import annotations

import concurrent.futures.process
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lmx.core.cores import available_cores
from lmx.core.errors import StorageError, UserError

Work = Callable[[Any], None]


class Runner(Protocol):
    """Does `work` on every item, in any order; `advance` is called after each."""

    def run(
        self, work: Work, items: Sequence[Any], *, advance: Callable[[int], None]
    ) -> None: ...

    def close(self) -> None:
        """Gives back what is held between stages; it may run again."""


class Processes:
    """Some processes on this machine; one is this one."""

    def __init__(self, workers: int | None = None):
        self.workers = available_cores() if workers is None else workers
        if self.workers < 1:
            raise UserError(f"--workers={workers} must be 1 or more")
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._size = 0

    def run(
        self, work: Work, items: Sequence[Any], *, advance: Callable[[int], None]
    ) -> None:
        """Does the work; the first error of any process is raised here."""
        if self.workers == 1 or len(items) <= 1:
            for item in items:
                work(item)
                advance(1)
            return
        pool = self._of(min(self.workers, len(items)))
        try:
            tasks = [pool.submit(work, item) for item in items]
            for task in concurrent.futures.as_completed(tasks):
                task.result()
                advance(1)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise StorageError(
                "a process of the build was killed, likely for want of memory; run the "
                f"same command again to go on, with fewer than --workers={self.workers}"
            ) from error

    def close(self) -> None:
        """Ends the processes, and what they were still to do."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _of(self, size: int) -> concurrent.futures.ProcessPoolExecutor:
        """Returns so many processes: those of the last stage, if they were as many."""
        if self._pool is None or self._size != size:
            self.close()
            # Not fork: it may leave locks of threads held for ever.
            self._size = size
            self._pool = concurrent.futures.ProcessPoolExecutor(
                size,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_prepare_process,
                initargs=(self.workers // size,),
            )
        return self._pool


class Beam:
    """Apache Beam; the build's folder must be on storage that all its workers see."""

    def __init__(self, options: Sequence[str] = ()):
        try:
            import apache_beam
        except ImportError as error:
            raise UserError(
                "--runner=beam needs Apache Beam: pip install 'lmx[beam]', in an "
                "environment of its own"
            ) from error
        self._beam, self._options = apache_beam, list(options)

    def run(
        self, work: Work, items: Sequence[Any], *, advance: Callable[[int], None]
    ) -> None:
        """Does the work in one pipeline and waits for it."""
        beam = self._beam
        options = beam.options.pipeline_options.PipelineOptions(self._options)
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | beam.Create(list(items))
                | beam.Reshuffle()
                | beam.Map(functools.partial(_quietly, work))
            )
        advance(len(items))

    def close(self) -> None:
        """Does nothing: each pipeline has ended."""


def _quietly(work: Work, item: Any) -> None:
    work(item)


def _prepare_process(cores: int) -> None:
    """Leaves the other cores to the other processes, and Ctrl-C to the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = str(cores > 1).lower()
    os.environ["RAYON_NUM_THREADS"] = str(cores)
