"""The record of a run: metrics.jsonl, and the writers that mirror it.

One JSON object a line: `{"step": 20, "time": 1.7e9, "train/loss": 3.1, …}`. JSON has no
NaN, so a value that is not finite is null there and named beside it:
`{"step": 21, …, "train/loss": null, "nonfinite": {"train/loss": "nan"}}`. Nothing is
averaged, renamed or computed here.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lmx.core.errors import StorageError, pick

FILE_NAME = "metrics.jsonl"
NOT_METRICS = ("step", "time", "nonfinite")


class Writer(Protocol):
    """A mirror of the record. Either method may raise OSError."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars in WORKDIR/tensorboard, written in this thread, flushed every 5 seconds.

    tensorboardX's own SummaryWriter is not used: its queue blocks for ever once the
    thread behind it has died of a full disk. Values that are not finite are left out.
    """

    FLUSH_SECONDS = 5.0  # a flush is an fsync

    def __init__(self, workdir: Path, start_step: int):
        from tensorboardX import event_file_writer, proto, summary

        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._event = proto.event_pb2.Event
        self._scalar = summary.scalar
        self._file = event_file_writer.EventsWriter(
            str(folder / "events"), filename_suffix=f".{os.getpid()}"
        )
        # Tells TensorBoard to hide what an interrupted run wrote past its checkpoint.
        session = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._put(step=start_step + 1, session_log=session)
        self._file.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {tag: v for tag, v in values.items() if math.isfinite(v)}
        if finite:
            summaries = [self._scalar(tag, v) for tag, v in finite.items()]
            for summary in summaries[1:]:
                summaries[0].MergeFrom(summary)
            self._put(step=step, summary=summaries[0])
        if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _put(self, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **content))


WRITERS: dict[str, Callable[[Path, int], Writer]] = {"tensorboard": TensorBoard}


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and to the named writers.

    Opening drops every row past `start_step`, so that a resumed run has each step once,
    and a last line that a killed run left torn. Each row is on disk when `write`
    returns. Raises UserError for an unknown writer and StorageError when the disk
    refuses.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        writers: tuple[str, ...] = ("tensorboard",),
        start_step: int = 0,
    ):
        makers = [pick(WRITERS, name, "log.writers entry") for name in writers]
        self._path = Path(workdir) / FILE_NAME
        self._mirrors: list[Writer] = []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(self._path, start_step)
            # Unbuffered: a row is whole on disk, and closing has nothing left to write.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _storage_error(self._path, error) from error
        try:
            for maker in makers:
                self._mirrors.append(maker(self._path.parent, start_step))
        except OSError as error:
            self.close()
            raise _storage_error(self._path, error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Records `values` (tag → number, or scalar array) of `step`."""
        numbers = {tag: _number(value) for tag, value in values.items()}
        row = {"step": int(step), "time": round(time.time(), 3), **_finite(numbers)}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
            for mirror in self._mirrors:
                mirror.write(int(step), numbers)
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def close(self) -> None:
        """Closes every writer; a second call does nothing."""
        mirrors, self._mirrors = self._mirrors, []
        self._file.close()
        try:
            for mirror in mirrors:
                mirror.close()
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a metrics.jsonl as they were written, NaN and infinities too.

    A torn line is skipped, so a run that is still writing can be read.
    """
    with open(path, "rb") as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                names = row.pop("nonfinite", {})
                yield {**row, **{tag: float(name) for tag, name in names.items()}}


def _number(value: Any) -> float:
    # An int stays one: float64 would round token counts past 2^53.
    return value if type(value) is int else float(value)


def _finite(numbers: Mapping[str, float]) -> dict[str, Any]:
    odd = {tag: str(v) for tag, v in numbers.items() if not math.isfinite(v)}
    kept = {tag: None if tag in odd else v for tag, v in numbers.items()}
    return {**kept, "nonfinite": odd} if odd else kept


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _drop_after(path: Path, step: int) -> None:
    """Rewrites `path`, atomically, without torn lines and rows past `step`."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [(line, _parse(line)) for line in lines]
    kept = [line for line, row in rows if row is not None and row["step"] <= step]
    if len(kept) == len(lines):
        return
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    remedy = (
        "free some space"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "make the folder writable or choose another --workdir"
    )
    return StorageError(
        f"cannot write {path}: {reason}; {remedy} and run the same command again: "
        "a training run resumes from its last checkpoint"
    )
