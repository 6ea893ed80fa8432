"""Numbers in a file behind a URL, read by ranges of bytes as they are asked for.

What was read is remembered in blocks, up to a bound that all files of a store share. A
file that is not what it was when the store was opened is an error that names it: its
server's stamp is asked for after every read, before the bytes are used.

    tokens.bin.url   stands beside the manifest of a store in place of a tokens.bin that
                     is elsewhere: its URL, size and stamp as JSON
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lmx.core.errors import DataError
from lmx.data import places
from lmx.data.places import FileEntry

BLOCK = 64 << 10
"""Bytes read at once: rows of a shuffled epoch lie far apart."""
HELD_BYTES = 256 << 20

Part = tuple[FileEntry, int]
"""A file and the number of one of its blocks."""


class Blocks:
    """The blocks of files that were read last; threads may share it."""

    def __init__(self, *, held_bytes: int = HELD_BYTES, block: int = BLOCK):
        self.block = block
        self._most = max(1, held_bytes // block)
        self._held: OrderedDict[Part, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, entry: FileEntry, first: int, last: int) -> bytes:
        """Returns the bytes of a file from block `first` to block `last`."""
        parts = [(entry, index) for index in range(first, last + 1)]
        with self._lock:
            found = {part: self._held[part] for part in parts if part in self._held}
        found |= self.fetch([part for part in parts if part not in found])
        return b"".join(found[part] for part in parts)

    def fetch(self, wanted: Collection[Part]) -> dict[Part, bytes]:
        """Returns blocks; those that are not held are read, all of them at once.

        Raises a `DataError` where a file is gone, or not what it was.
        """
        with self._lock:
            found = {part: self._held[part] for part in wanted if part in self._held}
            for part in found:
                self._held.move_to_end(part)
        missing = sorted(set(wanted) - found.keys(), key=_place)
        if not missing:
            return found
        runs = _runs(missing)
        read = _read([(parts[0][0], *self._span(parts)) for parts in runs])
        for parts, content in zip(runs, read, strict=True):
            for number, part in enumerate(parts):
                start = number * self.block
                found[part] = content[start : start + self.block]
        with self._lock:
            self._held.update((part, found[part]) for part in missing)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return found

    def _span(self, parts: list[Part]) -> tuple[int, int]:
        """Returns the first byte of neighbouring blocks, and the one after the last."""
        (entry, first), (_, last) = parts[0], parts[-1]
        return first * self.block, min(entry.size, (last + 1) * self.block)


class RemoteNumbers:
    """A file of numbers behind a URL; it is indexed as an array of one axis is."""

    def __init__(self, entry: FileEntry, dtype: str, blocks: Blocks):
        self.dtype = np.dtype(dtype)
        self.blocks = blocks
        self._entry = entry

    def __len__(self) -> int:
        return self._entry.size // self.dtype.itemsize

    def __getitem__(self, key: int | slice) -> np.ndarray:
        """Returns numbers; raises a `DataError` where they cannot be read."""
        if not isinstance(key, slice):
            return self[int(key) : int(key) + 1][0]
        start, stop, _ = key.indices(len(self))
        if start >= stop:
            return np.zeros(0, self.dtype)
        size, block = self.dtype.itemsize, self.blocks.block
        first = start * size // block
        content = self.blocks.get(self._entry, first, (stop * size - 1) // block)
        return np.frombuffer(
            content, self.dtype, stop - start, start * size - first * block
        )

    def parts(self, starts: np.ndarray, stops: np.ndarray) -> set[Part]:
        """Returns the blocks that hold these ranges of numbers, for `Blocks.fetch`."""
        size, block = self.dtype.itemsize, self.blocks.block
        stops = np.minimum(stops, len(self))
        ranges = zip(
            (starts * size // block).tolist(),
            (stops * size - 1).tolist(),
            strict=True,
        )
        return {
            (self._entry, index)
            for first, end in ranges
            for index in range(first, end // block + 1)
        }


Numbers = np.ndarray | RemoteNumbers


def numbers(path: Path, dtype: str, blocks: Blocks) -> Numbers:
    """Returns the numbers of a file: a memory map, or a reader of where it is."""
    if not path.exists() and (entry := entry_of(path)) is not None:
        return RemoteNumbers(entry, dtype, blocks)
    if not path.stat().st_size:  # no file of none can be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, wherever it is."""
    if path.exists() or (entry := entry_of(path)) is None:
        return path.read_bytes()
    return _read([(entry, 0, entry.size)])[0]


def leave(path: Path, entry: FileEntry) -> None:
    """Writes where a file is that is not brought to `path`."""
    _note(path).write_text(json.dumps(entry._asdict()), "utf-8")


def entry_of(path: Path) -> FileEntry | None:
    """Returns where a file is that was left elsewhere, None where none was."""
    try:
        return FileEntry(**json.loads(_note(path).read_text("utf-8")))
    except FileNotFoundError:
        return None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.url")


def _place(part: Part) -> tuple[str, int]:
    return part[0].path, part[1]


def _runs(parts: Iterable[Part]) -> list[list[Part]]:
    """Groups sorted blocks that follow each other in one file."""
    runs: list[list[Part]] = []
    previous: Part | None = None
    for part in parts:
        if previous is None or part != (previous[0], previous[1] + 1):
            runs.append([])
        runs[-1].append(part)
        previous = part
    return runs


def _read(spans: list[tuple[FileEntry, int, int]]) -> list[bytes]:
    """Returns bytes of files of one file system, which are as they were."""
    files, _ = places.filesystem(spans[0][0].path)
    entries, starts, stops = (list(column) for column in zip(*spans, strict=True))
    paths = [files._strip_protocol(entry.path) for entry in entries]
    read: list[bytes] = []
    with contextlib.suppress(FileNotFoundError), places.reached(entries[0].path):
        read = files.cat_ranges(paths, starts, stops, on_error="raise")
    # One that is gone, or is another now, is told by name.
    with ThreadPoolExecutor() as pool:
        list(pool.map(places.check_same, dict.fromkeys(entries)))
    sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    if [len(part) for part in read] != sizes:
        raise DataError(
            f"{entries[0].path} was read in parts of other sizes than were asked for; "
            "run again when nothing writes to it"
        )
    return read
