"""A built store behind a URL: its small files are copied into the cache, once.

What is copied is a folder that opens as any store does, with all its checks. Files of
more than 64 MiB that are read in parts (tokens, weights, columns) or seldom (names,
texts) stay where they are, and a note of where (`remote`) takes their place. The copy
is of what the server listed, with sizes and stamps: a store that has changed is copied
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lmx.core.errors import DataError
from lmx.data import built, places, remote, store
from lmx.data.places import FileEntry

LEFT = (".bin", built.NAMES, built.TEXT)
COPIED_BYTES = 64 << 20
"""Of the largest of those files that is copied."""
COPIED_AT_ONCE = 256 << 20
MANIFEST_BYTES = 64 << 20


def opened_at(path: str, *, cache_dir: Path) -> str:
    """Returns the folder to open a store at: `path`, or a copy of what is at a URL.

    What is no built store is returned as it is. Raises a `DataError` where a store is
    damaged, changes meanwhile or cannot be reached.
    """
    path = path.removeprefix("file://")
    if not places.is_url(path) or not _is_store(path):
        return path
    listing = places.find(path)
    assert listing is not None  # its manifest is there
    key = json.dumps([store.FORMAT, path, listing.entries])
    folder = cache_dir / "remote" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.exists():
        with store.atomic_directory(folder) as partial:
            try:
                _copy(listing.entries, partial, url=path)
                built.open_built(partial)
            except DataError as error:
                told = str(error).replace(str(partial), path)
                raise DataError(told) from error
    return str(folder)


def _is_store(url: str) -> bool:
    """Returns whether a URL is meant as a built store, be it whole or damaged."""
    content = b""
    found = places.find(f"{url.rstrip('/')}/manifest.json")
    if found is not None and found.single:
        with places.open_file(found.entries[0]) as file:
            content = file.read(MANIFEST_BYTES)
    try:
        return json.loads(content)["kind"] == built.KIND
    except (ValueError, KeyError, TypeError):
        return places.find(f"{url.rstrip('/')}/tokenizer/tokenizer.json") is not None


def _copy(entries: list[FileEntry], folder: Path, *, url: str) -> None:
    """Copies the files of a listing, many at once, or leaves a note of where one is."""
    small = []
    for entry in entries:
        name = PurePosixPath(entry.name)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"{url} has a file {entry.name!r}, outside of it; delete it"
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if entry.size > COPIED_BYTES and name.name.endswith(LEFT):
            remote.leave(folder / name, entry)
        else:
            small.append(entry)
    files, _ = places.filesystem(url)
    for group in _groups(small):
        paths = {files._strip_protocol(entry.path): entry for entry in group}
        try:
            with places.reached(url):
                contents = files.cat(list(paths))
        except FileNotFoundError as error:
            raise places.unreadable(error, url) from error
        if isinstance(contents, bytes):  # of a single file
            contents = dict.fromkeys(paths, contents)
        for path, content in contents.items():
            (folder / paths[path].name).write_bytes(content)


def _groups(entries: list[FileEntry]) -> Iterator[list[FileEntry]]:
    """Cuts a list of files into such as fit in memory together."""
    group: list[FileEntry] = []
    size = 0
    for entry in entries:
        if group and size + entry.size > COPIED_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.size
    if group:
        yield group
