"""Text on its way to the store: read once, gone over as often as needed.

A spool is the UTF-8 of its documents, end to end, in a temporary file; their lengths
are in memory. It keeps a slow or changing source from being read twice.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self


class Spool:
    """Documents in a file: append in a `with` block, then read."""

    def __init__(self, path: Path):
        self._path = path
        self._lengths = array("q")
        self._dropped: set[int] = set()

    def __enter__(self) -> Self:
        self._file = open(self._path, "wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lengths) - len(self._dropped)

    @property
    def size(self) -> int:
        """Returns the bytes of all documents."""
        return sum(self._lengths) - sum(self._lengths[i] for i in self._dropped)

    def append(self, text: str) -> None:
        """Adds a document."""
        content = text.encode()
        self._file.write(content)
        self._lengths.append(len(content))

    def drop(self, index: int) -> None:
        """Leaves out the index-th document that was appended."""
        self._dropped.add(index)

    def texts(self, *, every: int = 1) -> Iterator[str]:
        """Yields the documents, or every so many-th of them."""
        with open(self._path, "rb") as file:
            for index, length in enumerate(self._lengths):
                if index in self._dropped or index % every:
                    file.seek(length, os.SEEK_CUR)
                else:
                    yield file.read(length).decode()

    def move_text(self, path: Path) -> None:
        """Keeps the text as a file; the spool cannot be read any more."""
        assert not self._dropped, "the file still holds dropped documents"
        os.replace(self._path, path)

    def remove(self) -> None:
        """Deletes the file."""
        self._path.unlink()
