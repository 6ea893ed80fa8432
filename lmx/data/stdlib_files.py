"""Which files of the running Python's standard library are a corpus, and their text.

Left out: installed packages, tests, bundled wheels, caches, and what a build generates
for one machine. `pydoc_data` counts as its prose, one document for each topic, and not
as the source that holds it. How it is stored is in `stdlib_corpus`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lmx.core import errors
from lmx.data import files
from lmx.data.places import FileEntry

LEFT_OUT = {
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),
    *("test", "tests", "idle_test", "_bundled", "pydoc_data"),
}
REMEDY = "install a complete Python, or set data.path to your own text"


def list_stdlib() -> list[FileEntry]:
    """Returns the source files of the standard library, sorted by name.

    Raises a `DataError` where it has none, as in a zipped or stripped installation.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in LEFT_OUT and "config-" not in f]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                info = path.stat()
                relative = path.relative_to(root).as_posix()
                entry = (str(path), relative, info.st_size, info.st_mtime_ns)
                found.append(FileEntry(*entry))
    if len(found) < 100:
        raise errors.DataError(
            f"the standard library's source is not at {root} "
            f"({len(found)} .py files there); {REMEDY}"
        )
    return sorted(found, key=lambda entry: entry.name)


def read_stdlib(tally: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of each module and topic once; counts what is left out."""
    seen = set()
    for name, text in _all_documents(tally):
        key = hashlib.sha256(text.replace("\r\n", "\n").encode()).digest()
        if key in seen:
            tally["duplicates"] += 1
        elif not text.strip():
            tally["empty"] += 1
        else:
            seen.add(key)
            yield name, text


def _all_documents(tally: Counter[str]) -> Iterator[tuple[str, str]]:
    for entry in list_stdlib():
        try:
            yield entry.name, files.read_text(entry)
        except files.NotTextError:
            tally["skipped"] += 1
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise errors.DataError(
            f"this Python has no pydoc_data.topics; {REMEDY}"
        ) from error
    for name, text in sorted(topics.items()):
        yield f"pydoc_data/topics/{name}", text
