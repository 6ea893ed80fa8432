"""The training loop. It reads like a page; everything it calls is handed to it.

Invariant: before iteration `step`, `state.step == step` and the state depends only on
the experiment, never on when the run was interrupted, saved or evaluated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax

from lmx.core.errors import DivergedError, Preempted
from lmx.core.schema import ExperimentConfig
from lmx.inputs.batch import Batch
from lmx.training.checkpoints import Checkpoints
from lmx.training.metrics import MetricsWriter
from lmx.training.preemption import Preemption
from lmx.training.progress import Progress
from lmx.training.state import TrainState, saved

Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop calls.

    Attributes:
      step: the compiled step; it may reuse the memory of the state it is given.
      batches: (start, stop) → batches on their devices, in order.
      evaluate: state → `eval/…` metrics.
      schedule: accepted steps → learning rate.
      flops_per_token: step → those of one token in it, for MFU; the first is 1.
      peak_flops: of all devices per second; None where unknown.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batches: Callable[[int, int], Generator[Batch, None, None]]
    evaluate: Callable[[TrainState], dict[str, float]]
    schedule: Callable[[int], Any]
    checkpoints: Checkpoints
    metrics: MetricsWriter
    progress: Progress
    preemption: Preemption
    flops_per_token: Callable[[int], float]
    peak_flops: float | None


def train(state: TrainState, parts: Parts, config: ExperimentConfig) -> TrainState:
    """Returns the state after `config.steps` steps, evaluated and saved on schedule.

    The metrics of a step are fetched while the next one runs, so the device never
    waits for the host to write them.

    Raises:
      Preempted: a signal asked to stop; the state is saved.
      DivergedError: too many non-finite steps in a row; the (finite) state is saved.
      StorageError: a checkpoint or a record could not be written.
    """
    start, stop = int(state.step), config.steps
    record = Record(parts, config, start)
    with contextlib.closing(parts.batches(start, stop)) as batches:
        try:
            for step in range(start, stop):
                if parts.preemption.requested:
                    record.flush()
                    save(state, step, parts)
                    raise Preempted(
                        f"stopped at step {step} of {stop}, saved; run it again"
                    )
                parts.checkpoints.check()
                with record.waiting_for_data():
                    batch = next(batches)
                state, metrics = parts.step(state, batch)
                record.add(step + 1, metrics)
                if due(step + 1, config.evals.every_steps, stop):
                    record.flush_device()  # an evaluation's time is not the step's
                    record.extend(parts.evaluate(state))
                if due(step + 1, config.checkpoint.save_every_steps, stop):
                    record.flush()  # what a checkpoint has seen is on record
                    parts.checkpoints.save(step + 1, saved(state))
        except DivergedError:
            with contextlib.suppress(DivergedError):
                record.flush()
            save(state, int(state.step), parts)
            raise
    parts.progress.status("writing the last checkpoint")
    parts.checkpoints.wait()
    return state


def due(step: int, every: int, stop: int) -> bool:
    """Returns whether something done every so many steps, and at the end, is due."""
    return step % every == 0 or step == stop


def save(state: TrainState, step: int, parts: Parts) -> None:
    """Saves a state at once and waits until it is on disk."""
    parts.checkpoints.save(step, saved(state))
    parts.checkpoints.wait()


class Record:
    """Holds the newest step's metrics until they are ready, then writes them."""

    def __init__(self, parts: Parts, config: ExperimentConfig, start: int):
        self._parts = parts
        self._config = config
        self._pending: tuple[int, Metrics | None] | None = None
        self._extra: dict[str, float] = {}
        self._waited = 0.0
        self._clock = time.perf_counter()
        self._step = start

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of `step`, still being computed; writes the step before."""
        try:
            self.flush()
        finally:
            self._pending = (step, metrics)

    def extend(self, values: dict[str, float]) -> None:
        """Adds host values to the newest step; the time they took is not the step's."""
        self.flush_device()
        self._extra.update(values)
        self._clock = time.perf_counter()
        self._waited = 0.0

    def flush_device(self) -> None:
        """Fetches what is pending without writing it yet."""
        step, metrics = self._pending or (0, None)
        if metrics is not None:
            self._extra.update(self._measured(step, jax.device_get(metrics)))
            self._pending = (step, None)

    def flush(self) -> None:
        """Writes and shows the pending step, and stops a run that diverged."""
        if self._pending is None:
            return
        self.flush_device()
        step, values = self._pending[0], self._extra
        self._pending, self._extra = None, {}
        streak = int(values.pop("train/consecutive_nonfinite"))
        evaluated = any(tag.startswith("eval/") for tag in values)
        if evaluated or due(step, self._config.log.every_steps, self._config.steps):
            self._parts.metrics.write(step, values)
        self._parts.progress.update(step, values)
        limit = self._config.optim.max_nonfinite_steps
        if streak >= limit:
            raise DivergedError(
                f"the loss or its gradient was not finite in {streak} steps in a row, "
                f"up to step {step}; they changed nothing, and the saved weights are "
                "finite; try a lower optim.learning_rate or a longer optim.warmup_steps"
            )

    def _measured(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Returns a step's metrics under their tags, with its speed."""
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9)
        tokens = float(metrics["tokens"])
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        taken = step - 1 - int(metrics["skipped"])
        values["train/lr"] = float(self._parts.schedule(max(0, taken)))
        values["perf/step_time"] = seconds
        values["perf/tokens_per_sec"] = tokens / seconds
        values["perf/data_wait"] = min(1.0, self._waited / seconds)
        if self._parts.peak_flops:
            rate = tokens * self._parts.flops_per_token(step) / seconds
            values["perf/mfu"] = rate / self._parts.peak_flops
        self._clock, self._waited = now, 0.0
        return values
