"""GGUF files, version 3, written: the header first, then one tensor after the other.

Writing holds one tensor in memory, and a file appears whole or not at all. Reading is
in `gguf_file`, the bytes of a block in `gguf_blocks`; which metadata and tensors a
model needs is not known here.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmx.core import errors
from lmx.interop.gguf_blocks import KINDS, WRITERS
from lmx.interop.gguf_file import (
    ARRAY,
    CHUNK,
    MAGIC,
    MAX_DEPTH,
    MAX_DIMS,
    MAX_KEY,
    MAX_NAME,
    SCALARS,
    STRING,
    U32,
    U64,
    TensorInfo,
    alignment_of,
    brief,
)

NUMBERS = {np.dtype(code): number for number, code in SCALARS.items()}


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    kind: str,
) -> None:
    """Writes a GGUF v3 file of `kind` F32, F16, BF16 or Q8_0, whole or not at all.

    `tensors` gives name, shape in NumPy order and a function that makes the float32
    array, called one at a time. Tensors of one axis stay F32, and for Q8_0 those whose
    last axis is not a multiple of 32. A Python int is written as 32 bits where it fits,
    a float as 32 bits; NumPy values keep their type. Raises a `DataError` for what the
    format cannot hold, a `StorageError` where the file cannot be written.
    """
    number = errors.pick(WRITERS, kind, "GGUF kind")[1]
    entries = list(tensors)
    metadata = {"general.file_type": number, **metadata}
    if kind == "Q8_0":
        metadata.setdefault("general.quantization_version", 2)
    alignment = alignment_of(metadata)
    infos = _place(entries, kind, alignment)
    header = _header(metadata, infos, alignment)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(header)
            for info, (_, _, make) in zip(infos, entries, strict=True):
                file.write(bytes(len(header) + info.offset - file.tell()))
                _write_tensor(file, info, make())
            # The last one is padded too: readers map it in whole steps.
            file.write(bytes(-file.tell() % alignment))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise errors.StorageError(
            f"cannot write {path} ({error.strerror}); free some space or choose a "
            "folder you can write"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _place(
    entries: Iterable[tuple[str, tuple[int, ...], Any]], kind: str, alignment: int
) -> list[TensorInfo]:
    """Returns where each tensor goes, offsets from the start of the data."""
    infos: dict[str, TensorInfo] = {}
    offset = 0
    for name, shape, _ in entries:
        if name in infos or len(name.encode()) > MAX_NAME:
            raise errors.DataError(
                f"tensor name {brief(name)} is there twice or has more than "
                f"{MAX_NAME} bytes; give each tensor a short name of its own"
            )
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
            raise errors.DataError(
                f"tensor {name!r} has the shape {tuple(shape)}; GGUF holds 1 to "
                f"{MAX_DIMS} axes of positive size: reshape it"
            )
        whole = shape[-1] % KINDS[kind].elements == 0
        stored = kind if len(shape) > 1 and whole else "F32"
        elements = int(np.prod(shape, dtype=object))
        nbytes = elements // KINDS[stored].elements * KINDS[stored].size
        infos[name] = TensorInfo(name, tuple(shape), stored, offset, nbytes)
        offset += nbytes + -nbytes % alignment
    return list(infos.values())


def _header(
    metadata: Mapping[str, Any], infos: list[TensorInfo], alignment: int
) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", 3, len(infos), len(metadata))]
    for key, value in metadata.items():
        if len(key.encode()) > MAX_KEY:
            raise errors.DataError(f"key {brief(key)} has more than {MAX_KEY} bytes")
        number, content = _value(key, value, 0)
        parts += [_text(key), U32.pack(number), content]
    for info in infos:
        dims = info.shape[::-1]
        parts += [_text(info.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", KINDS[info.kind].number, info.offset))
    content = b"".join(parts)
    return content + bytes(-len(content) % alignment)


def _text(text: str) -> bytes:
    content = text.encode()
    return U64.pack(len(content)) + content


def _value(key: str, value: Any, depth: int) -> tuple[int, bytes]:
    """Returns the number of the type of `value`, and its bytes."""
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.ndim
    ):
        return ARRAY, _array(key, value, depth)
    array = np.asarray(value, _dtype(value))
    number = NUMBERS.get(array.dtype)
    if number is None:
        raise errors.DataError(
            f"metadata {key!r} is {brief(value)}, which GGUF cannot hold; give a "
            "string, a number, a truth value or a list of one of them"
        )
    return number, array.tobytes()


def _dtype(value: Any) -> Any:
    """Returns the type for a Python number (readers expect 32 bits), else None."""
    if isinstance(value, float) and not isinstance(value, np.floating):
        return "<f4"
    if isinstance(value, int) and not isinstance(value, bool):
        fits = (d for d in ("<u4", "<i4", "<u8", "<i8") if _fits(value, d))
        return next(fits, None)
    return None


def _fits(value: int, code: str) -> bool:
    limits = np.iinfo(np.dtype(code))
    return limits.min <= value <= limits.max


def _array(key: str, values: Any, depth: int) -> bytes:
    """Returns the bytes of an array: the type of its items, their number, the items."""
    if depth == MAX_DEPTH:
        raise errors.DataError(f"metadata {key!r} nests more than {MAX_DEPTH} lists")
    if isinstance(values, list | tuple) and values:
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            code = "<i4" if all(_fits(v, "<i4") for v in values) else "<i8"
            values = np.asarray(values, code)
        elif all(isinstance(v, float) for v in values):
            values = np.asarray(values, "<f4")
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype in NUMBERS:
        head = struct.pack("<IQ", NUMBERS[values.dtype], len(values))
        return head + values.tobytes()
    items = [_value(key, value, depth + 1) for value in values]
    numbers = {number for number, _ in items} or {STRING}
    if len(numbers) > 1:
        raise errors.DataError(
            f"metadata {key!r} mixes types in one list; give items of one type"
        )
    head = struct.pack("<IQ", numbers.pop(), len(items))
    return head + b"".join(content for _, content in items)


def _write_tensor(file: BinaryIO, info: TensorInfo, array: np.ndarray) -> None:
    if array.shape != info.shape:
        raise errors.DataError(
            f"tensor {info.name!r} has the shape {array.shape}, not the announced "
            f"{info.shape}; announce the shape that its function makes"
        )
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    encode = WRITERS[info.kind][0]
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        # Half precision ends at 65504, and so does the scale of a block.
        top = {"F16": 65504.0, "Q8_0": 127 * 65504.0}.get(info.kind, np.inf)
        if info.kind != "F32" and not np.all(np.abs(part) <= min(top, 3.38e38)):
            raise errors.DataError(
                f"tensor {info.name!r} has values that {info.kind} cannot hold (not "
                f"finite, or beyond {min(top, 3.38e38):g}); write the file as F32"
            )
        file.write(encode(part).tobytes())
