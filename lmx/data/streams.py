"""The bytes of a file, unpacked, in bounded memory; what is made to fill it is named.

Text and lines are not decoded here (`readers`).
"""

from __future__ import annotations

from collections.abc import Iterator

from lmx.core.errors import DataError
from lmx.data import places
from lmx.data.places import FileEntry

LONGEST_LINE = 64 << 20
READ_BYTES = 1 << 20
# No text is packed so well; what expands further is made to fill a disk or a memory.
EXPANSION, EXPANSION_BYTES = 200, 1 << 30
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


class TooLong(Exception):
    """A file has more bytes than are taken."""


def unpacked_name(name: str) -> str:
    """Returns a file's name in small letters, without what says how it is packed."""
    name = name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return name


def chunks(entry: FileEntry, most: int | None = None) -> Iterator[bytes]:
    """Yields the bytes of a file, unpacked.

    Raises a `DataError` for a file that is damaged, or a bomb; `TooLong` for one of
    more bytes than `most`.
    """
    import pyarrow

    suffix = entry.name.lower().rpartition(".")[2]
    packed = COMPRESSED.get(f".{suffix}")
    done = 0
    try:
        file = places.open_file(entry)
    except OSError as error:
        raise places.unreadable(error, entry.path) from error
    try:
        with file, pyarrow.input_stream(file, compression=packed) as stream:
            while chunk := stream.read(READ_BYTES):
                done += len(chunk)
                if packed:
                    check_expansion(entry, done)
                if most is not None and done > most:
                    raise TooLong
                yield chunk
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        kind = f"whole {packed} file" if packed else "readable file"
        raise DataError(
            f"{entry.path} is not a {kind} ({error}); fetch or write it again"
        ) from error


def check_expansion(entry: FileEntry, done: int) -> None:
    """Raises a `DataError` where a file gives so many bytes that it must be a bomb."""
    if done > max(EXPANSION_BYTES, EXPANSION * entry.size):
        raise DataError(
            f"{entry.path} unpacks to more than {EXPANSION} times its {entry.size:,} "
            "bytes; it is taken for a bomb: unpack it yourself if it is none"
        )


def lines(entry: FileEntry) -> Iterator[bytes | None]:
    """Yields lines; None for one that is longer than is taken."""
    held: list[bytes] = []
    size, skipping = 0, False
    for chunk in chunks(entry):
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield (
                None
                if skipping or size + len(part) > LONGEST_LINE
                else b"".join([*held, part])
            )
            held, size, skipping = [], 0, False
        if rest:
            size += len(rest)
            skipping = skipping or size > LONGEST_LINE
            held = [] if skipping else [*held, rest]
    if held or skipping:
        yield None if skipping else b"".join(held)
