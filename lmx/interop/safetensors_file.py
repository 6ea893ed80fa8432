"""Reading and writing safetensors: one file, or shards with an index.

The header is checked before a byte of data is touched: the common reader takes
duplicate names. Data is memory-mapped, so a tensor costs memory while it is used.
"""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lmx.core.errors import DataError
from lmx.core.workdir import write_atomic

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "BOOL": np.dtype(np.bool_),
}
MOST_AXES, LONGEST_AXIS = 16, 2**40
LARGEST_HEADER = 100_000_000  # bytes; that of the format's own library
SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Entry(NamedTuple):
    """Where one tensor lies: its type, shape and first byte in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """One safetensors file, opened and checked; `read` maps a tensor."""

    def __init__(self, path: str | os.PathLike[str]):
        """Reads and checks the header.

        Raises:
          DataError: the file cannot be read or is not whole; the reason is named.
        """
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(LARGEST_HEADER, size - 8):
                    raise self._wrong(f"its header of {length} bytes does not fit in")
                header = file.read(length)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read: {error.strerror}; download it"
            ) from error
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path!r} is no name of a file: {error}") from None
        self.entries = self._entries(header, 8 + length, size)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns `rows` of a tensor, mapped from the file and read-only."""
        dtype, shape, start = self.entries[name]
        if shape:
            span = range(*rows.indices(shape[0]))
            shape = (len(span), *shape[1:])
            start += span.start * math.prod(shape[1:]) * dtype.itemsize
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(self.path, dtype, "r", start, shape)

    def _entries(self, header: bytes, base: int, size: int) -> dict[str, Entry]:
        try:
            table = json.loads(header.decode("utf8"), object_pairs_hook=self._unique)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise self._wrong(f"its header is not JSON ({error})") from None
        if not isinstance(table, dict):
            raise self._wrong("its header is not a table")
        table.pop("__metadata__", None)
        found, spans = {}, []
        for name, facts in table.items():
            entry, end = self._entry(name, facts, base)
            found[name] = entry
            spans.append((entry.start, end, name))
        at = base
        for start, end, name in sorted(spans):
            if start != at:
                raise self._wrong(f"{name!r} overlaps another tensor or leaves a gap")
            at = end
        if at != size:
            raise self._wrong(f"its tensors end at byte {at} and the file at {size}")
        return found

    def _entry(self, name: str, facts: Any, base: int) -> tuple[Entry, int]:
        """Returns where `name` lies and the byte after it."""
        try:
            dtype, shape = DTYPES[facts["dtype"]], tuple(facts["shape"])
            start, end = facts["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
        except (KeyError, TypeError, ValueError):
            raise self._wrong(f"{name!r} is not described: {facts!r:.80}") from None
        whole = (
            whole and len(shape) <= MOST_AXES and max(shape, default=0) < LONGEST_AXIS
        )
        if not whole or math.prod(shape) * dtype.itemsize != end - start:
            raise self._wrong(
                f"{name!r} of shape {shape!s:.80} has bytes {start!s:.24}..{end!s:.24},"
                " which do not fit"
            )
        return Entry(dtype, shape, base + start), base + end

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            twice = next(name for name, n in counts.items() if n > 1)
            raise self._wrong(f"{twice!r} is in its header twice")
        return table

    def _wrong(self, what: str) -> DataError:
        return DataError(
            f"{self.path} is not a whole safetensors file: {what}; download it again"
        )


class Safetensors:
    """The tensors of a directory: one file, or the shards that its index names."""

    def __init__(self, directory: str | os.PathLike[str]):
        """Opens all files.

        Raises:
          DataError: there are none, a shard or a tensor is missing, or a file is
            damaged. Pickles (`.bin`, `.pt`) are never opened.
        """
        folder = Path(directory)
        index = folder / INDEX
        if (folder / SINGLE).exists():
            file = SafetensorsFile(folder / SINGLE)
            self._home = dict.fromkeys(file.entries, file)
        elif index.exists():
            self._home = self._sharded(folder, index)
        else:
            pickles = sorted(p.name for p in folder.glob("*.bin"))
            told = f"; {pickles[0]} is a pickle and is not opened" if pickles else ""
            raise DataError(
                f"{folder} holds no weights, neither {SINGLE} nor {INDEX}{told}; "
                "download one of them"
            )

    def names(self) -> list[str]:
        """Returns the names of all tensors."""
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._home[name].entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return self._home[name].entries[name].dtype

    def file(self, name: str) -> Path:
        """Returns the file that holds a tensor."""
        return self._home[name].path

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns `rows` of a tensor, mapped from its file and read-only."""
        return self._home[name].read(name, rows)

    def _sharded(self, folder: Path, index: Path) -> dict[str, SafetensorsFile]:
        try:
            wanted = json.loads(index.read_text(encoding="utf8"))["weight_map"]
            shards = sorted({Path(file).name for file in wanted.values()})
        except (
            *(OSError, ValueError, KeyError, TypeError, AttributeError),
            RecursionError,
        ) as error:
            raise DataError(f"{index} is not an index of shards: {error}") from None
        # A name with a folder in it would lead out of the directory.
        files = {name: SafetensorsFile(folder / name) for name in shards}
        home = {}
        for name, file in wanted.items():
            home[name] = files[Path(file).name]
            if name not in home[name].entries:
                raise DataError(f"{index}: {file} has no tensor {name!r}")
        for shard, file in files.items():
            spare = next((name for name in file.entries if name not in home), None)
            if spare is not None:
                raise DataError(f"{index} does not name {spare!r}, which {shard} holds")
        return home


def write_safetensors(
    directory: str | os.PathLike[str],
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    dtype: np.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors of one `dtype` into shards of at most `shard_bytes`.

    Each is given as (name, shape, function that makes it), so that one is in memory at
    a time. One shard is `model.safetensors`; of more, an index tells which holds what.
    """
    folder, code = Path(directory), {v: k for k, v in DTYPES.items()}[np.dtype(dtype)]
    shards: list[list] = [[]]
    room = shard_bytes
    for tensor in tensors:
        need = math.prod(tensor[1]) * dtype.itemsize
        if need > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        room -= need
        shards[-1].append(tensor)
    home: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE if len(shards) == 1 else file
        _write_shard(folder / file, shard, dtype, code)
        home |= {name: file for name, _, _ in shard}
    if len(shards) > 1:
        total = sum(math.prod(s) * dtype.itemsize for x in shards for _, s, _ in x)
        index = {"metadata": {"total_size": total}, "weight_map": home}
        write_atomic(folder / INDEX, json.dumps(index, indent=2))


def _write_shard(path: Path, tensors, dtype: np.dtype, code: str) -> None:
    header: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape, _ in tensors:
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, make in tensors:
            value = np.asarray(make(), dtype)
            assert value.shape == tuple(shape), (name, value.shape, shape)
            flat = np.ascontiguousarray(value.reshape(-1))
            file.write(flat.view(np.uint8).data if flat.size else b"")
