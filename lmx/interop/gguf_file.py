"""GGUF files, versions 2 and 3, read: a header of metadata, then tensors in blocks.

    magic, version, counts | key, type, value ... | name, dims, kind, offset ... | data

Reading trusts nothing: a count is held against the bytes that are left before anything
is allocated for it, so a hostile header costs what its own bytes cost. The constants of
the format, which `gguf_writer` shares, are here; what the bytes of a block mean is in
`gguf_blocks`. Which tensor is which weight of a model is not known here, and big-endian
files are refused.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lmx.core import errors
from lmx.interop.gguf_blocks import KIND_NAMES, KINDS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment does not say otherwise
MAX_ALIGNMENT = 1 << 16
MAX_KEY = 65535  # bytes, of the specification
MAX_NAME = 63  # bytes: ggml keeps 64, one of them a NUL
MAX_DIMS = 4
MAX_DEPTH = 4  # arrays in arrays
CHUNK = 1 << 20  # elements converted at once, a multiple of every block

# Scalars by their number in the file; a string is 8 and an array 9.
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class TensorInfo(NamedTuple):
    """One tensor: `shape` in NumPy order, `offset` in bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


class GGUFFile:
    """A GGUF file, memory-mapped: the header is read at once, a tensor when asked."""

    def __init__(self, path: str | os.PathLike[str]):
        """Parses the header of `path`; a `DataError` says what is wrong with it."""
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                empty = not os.fstat(file.fileno()).st_size
                # An empty file cannot be mapped.
                self._map = b"" if empty else _mapped(file)
        except OSError as error:
            raise errors.DataError(
                f"cannot read {self.path} ({error.strerror}); give the path of a "
                "GGUF file"
            ) from error
        cursor = _Cursor(self.path, self._map)
        tensor_count, key_count = _read_start(cursor)
        self.metadata: dict[str, Any] = _read_metadata(cursor, key_count)
        self.tensors: dict[str, TensorInfo] = _read_tensors(
            cursor, tensor_count, self.metadata
        )

    def names(self) -> list[str]:
        """Returns the names of all tensors, in the order of the file."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self.tensors[name].shape

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns `rows` of the tensor `name` as float32 in memory of its own.

        Raises a `DataError` for an unknown name or a kind that cannot be decoded.
        """
        if name not in self.tensors:
            raise errors.DataError(
                f"{self.path} has no tensor {name!r}"
                f"{errors.did_you_mean(name, self.tensors)}"
            )
        info = self.tensors[name]
        kind = KINDS[info.kind]
        if kind.decode is None:
            known = ", ".join(name for name, k in KINDS.items() if k.decode)
            raise errors.DataError(
                f"tensor {name!r} of {self.path} is {info.kind}, which cannot be read; "
                f"convert the file to one of {known}"
            )
        shape, start, size = info.shape, info.offset, info.nbytes
        if shape:
            span, row = range(*rows.indices(shape[0])), size // shape[0]
            shape = (len(span), *shape[1:])
            start, size = start + span.start * row, len(span) * row
        # Mapped anew each time: what was read of it does not stay in memory.
        raw = np.memmap(self.path, np.uint8, "r", start, (size,)) if size else ()
        blocks = np.asarray(raw, np.uint8).reshape(-1, kind.size)
        values = np.empty((len(blocks), kind.elements), np.float32)
        step = CHUNK // kind.elements
        # A scale may be infinite in the file; that is for the caller to notice.
        with np.errstate(all="ignore"):
            for start in range(0, len(blocks), step):
                part = slice(start, start + step)
                values[part] = kind.decode(blocks[part])
        return values.reshape(shape)


class _Cursor:
    """Walks over the bytes of a header and never beyond them."""

    def __init__(self, path: Path, content: bytes | mmap.mmap):
        self.path, self.content = path, content
        self.position, self.size = 0, len(content)

    def error(self, reason: str) -> errors.DataError:
        return errors.DataError(
            f"{self.path} is not a sound GGUF file: {reason} (at byte "
            f"{self.position} of {self.size}); download or convert it again"
        )

    def need(self, count: int, size: int, what: str) -> None:
        """Refuses `count` things of at least `size` bytes that the file cannot hold."""
        if count * size > self.size - self.position:
            raise self.error(
                f"{what}, {count}, needs {count * size} bytes or more where "
                f"{self.size - self.position} are left"
            )

    def take(self, count: int, what: str) -> bytes:
        self.need(count, 1, what)
        start = self.position
        self.position += count
        return self.content[start : self.position]

    def scalar(self, code: str, what: str) -> Any:
        array = self.array(code, 1, what)
        return array[0].item()

    def array(self, code: str, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(code)
        self.need(count, dtype.itemsize, what)
        raw = self.take(count * dtype.itemsize, what)
        if dtype == np.bool_ and raw.strip(b"\0\1"):
            raise self.error(f"{what} has a truth value that is neither 0 nor 1")
        return np.frombuffer(raw, dtype).copy()

    def integer(self, code: struct.Struct, what: str) -> int:
        """Reads one number, much faster than `scalar`."""
        if code.size > self.size - self.position:
            self.need(1, code.size, what)
        (number,) = code.unpack_from(self.content, self.position)
        self.position += code.size
        return number

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.integer(U64, what)
        if limit is not None and length > limit:
            raise self.error(f"{what} has {length} bytes, more than {limit}")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 ({error.reason})") from None


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """Returns the number of tensors and of keys."""
    magic = cursor.take(min(4, cursor.size), "magic")
    if magic != MAGIC:
        raise cursor.error(f"it begins with {magic!r}, not {MAGIC!r}")
    version = cursor.integer(U32, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise cursor.error(
            "it is big-endian" if swapped else f"version {version} is not 2 or 3"
        )
    tensors = cursor.integer(U64, "the number of tensors")
    keys = cursor.integer(U64, "the number of keys")
    # The least they take: a name, a number of dims, a kind, an offset; a name, a
    # kind, a byte.
    cursor.need(tensors, 24, "the number of tensors")
    cursor.need(keys, 13, "the number of keys")
    return tensors, keys


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY)
        if key in metadata:
            raise cursor.error(f"key {brief(key)} is there twice")
        number = cursor.integer(U32, f"the type of {brief(key)}")
        metadata[key] = _read_value(cursor, number, f"key {brief(key)}", 0)
    return metadata


def _read_value(cursor: _Cursor, number: int, what: str, depth: int) -> Any:
    if number in SCALARS:
        return cursor.scalar(SCALARS[number], what)
    if number == STRING:
        return cursor.text(what)
    if number != ARRAY:
        raise cursor.error(f"{what} has the unknown type {number}")
    if depth == MAX_DEPTH:
        raise cursor.error(f"{what} nests arrays more than {MAX_DEPTH} deep")
    inner = cursor.integer(U32, what)
    count = cursor.integer(U64, what)
    if inner in SCALARS:
        return cursor.array(SCALARS[inner], count, what)
    cursor.need(count, 12 if inner == ARRAY else 8, what)
    if inner == STRING:
        return [cursor.text(what) for _ in range(count)]
    return [_read_value(cursor, inner, what, depth + 1) for _ in range(count)]


def _read_tensors(
    cursor: _Cursor, count: int, metadata: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    try:
        alignment = alignment_of(metadata)
    except errors.DataError as error:
        raise cursor.error(str(error)) from None
    infos: dict[str, TensorInfo] = {}
    for _ in range(count):
        info = _read_info(cursor)
        if info.name in infos:
            raise cursor.error(f"tensor {brief(info.name)} is there twice")
        if info.offset % alignment:
            raise cursor.error(
                f"tensor {brief(info.name)} begins at {info.offset}, not a multiple "
                f"of {alignment}"
            )
        infos[info.name] = info
    start = cursor.position + -cursor.position % alignment
    placed = {
        name: info._replace(offset=start + info.offset) for name, info in infos.items()
    }
    end = start
    for info in sorted(placed.values(), key=lambda info: info.offset):
        if info.offset < end:
            raise cursor.error(f"tensor {brief(info.name)} overlaps another")
        end = info.offset + info.nbytes
        if end > cursor.size:
            raise cursor.error(
                f"tensor {brief(info.name)} {info.shape} {info.kind} ends at byte "
                f"{end}, outside the file"
            )
    return placed


def _read_info(cursor: _Cursor) -> TensorInfo:
    """Reads one tensor's entry; its offset is from the start of the data."""
    name = cursor.text("the name of a tensor", MAX_NAME)
    what = f"tensor {brief(name)}"
    rank = cursor.integer(U32, what)
    if rank > MAX_DIMS:
        raise cursor.error(f"{what} has {rank} dimensions, more than {MAX_DIMS}")
    dims = [cursor.integer(U64, what) for _ in range(rank)]
    number = cursor.integer(U32, what)
    offset = cursor.integer(U64, what)
    if number not in KIND_NAMES:
        raise cursor.error(f"{what} has the unknown kind {number}")
    kind = KINDS[KIND_NAMES[number]]
    elements = 1
    for dim in dims:  # Python's integers do not overflow
        elements *= dim
    if not elements or (dims or [1])[0] % kind.elements:
        raise cursor.error(
            f"{what} has the dimensions {dims}; they must be positive, and the first "
            f"a multiple of {kind.elements} for {KIND_NAMES[number]}"
        )
    nbytes = elements // kind.elements * kind.size
    return TensorInfo(name, tuple(dims[::-1]), KIND_NAMES[number], offset, nbytes)


def alignment_of(metadata: Mapping[str, Any]) -> int:
    """Returns where tensors may begin; a `DataError` refuses what is no alignment."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    whole = isinstance(alignment, int | np.integer) and not isinstance(alignment, bool)
    if not whole or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise errors.DataError(
            f"general.alignment is {brief(alignment)}; it must be a power of two, "
            f"1 to {MAX_ALIGNMENT}"
        )
    return int(alignment)


def brief(value: Any) -> str:
    """Returns `value` as a message shows it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
