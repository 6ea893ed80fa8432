"""What documents carry along beside their tokens: pictures, sound, any bytes.

    NAME.bin   the bytes of the documents, end to end
    NAME.npy   int64 [documents + 1]: where each document's bytes start, then the end

They stand in the folder of a token store and are read at random, from a memory map.
What they mean is not known here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmx.data.remote import Blocks, Numbers, numbers

RESERVED = ("tokens", "weights", "offsets")  # files of a store


class Column(NamedTuple):
    """The bytes of each document of a store."""

    content: Numbers
    """uint8 [bytes], a memory map or a reader of a file that is elsewhere."""
    offsets: np.ndarray
    """int64 [documents + 1], a memory map."""

    def read(self, document: int) -> bytes:
        """Returns the bytes of a document."""
        start, end = self.offsets[document], self.offsets[document + 1]
        return self.content[start:end].tobytes()

    def size(self, document: int) -> int:
        """Returns how many bytes a document has."""
        return int(self.offsets[document + 1] - self.offsets[document])


@contextlib.contextmanager
def column_files(
    directory: Path, names: Sequence[str]
) -> Iterator[Callable[[Sequence[bytes]], None]]:
    """Yields what takes the bytes of one document after another, one for each name."""
    ends: list[list[int]] = [[0] for _ in names]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(directory / f"{n}.bin", "wb")) for n in names]

        def add(contents: Sequence[bytes]) -> None:
            for file, content, end in zip(files, contents, ends, strict=True):
                file.write(content)
                end.append(end[-1] + len(content))

        yield add
        for file, name, end in zip(files, names, ends, strict=True):
            file.flush()
            os.fsync(file.fileno())
            np.save(directory / f"{name}.npy", np.array(end, np.int64))


def open_columns(
    directory: Path, files: Sequence[str], blocks: Blocks
) -> dict[str, Column]:
    """Returns the columns of a store with these files, by name.

    `blocks` remembers what was read of files that are elsewhere.
    """
    names = sorted(name.removesuffix(".npy") for name in files if name.endswith(".npy"))
    found = {}
    for name in names:
        if name not in RESERVED:
            content = numbers(directory / f"{name}.bin", "u1", blocks)
            offsets = np.load(directory / f"{name}.npy", mmap_mode="r")
            found[name] = Column(content, offsets)
    return found
