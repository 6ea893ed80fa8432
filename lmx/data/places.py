"""Where files are: on this machine, or behind a URL that fsspec opens.

A place is a folder or a file: a path, `file://`, `s3://BUCKET/…`, `gs://BUCKET/…`,
`hf://datasets/OWNER/NAME[@REVISION]/…`, any other protocol of fsspec, or
`hf:OWNER/NAME`, the Parquet files that the Hugging Face Hub keeps of a data set. This
module lists the files of a place, opens them, and notices where one has changed; what
is in them is not known here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmx.core.errors import DataError, UserError

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
HUB, CONVERTED = "hf:", "refs/convert/parquet"
PART = re.compile(r"(^|/)partial-")  # of a data set too large for the Hub to convert
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hub"}
# What file systems call that which differs when the content does.
STAMPS = (
    "etag",
    "ETag",
    "generation",
    "md5Hash",
    "content_md5",
    "xet_hash",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
LINKED_FOLDER = "a link to a folder"
REMOTE_BLOCK = 4 << 20  # bytes fetched at once
LIST_BYTES = 256 << 20  # of a file that is held whole: removals, opt-outs


class FileEntry(NamedTuple):
    """A file as it was when it was listed; cache keys are made of these."""

    path: str
    """On this machine, or a URL."""
    name: str
    size: int
    stamp: int | str
    """When it was modified, in ns; of a URL, what its server says instead."""


class Listing(NamedTuple):
    """The files of a place, and what is there that cannot be read."""

    entries: list[FileEntry]
    single: bool
    """It is a file, not a folder."""
    passed_over: list[tuple[str, str]]
    """(name, what it is) of links to folders or to nowhere, pipes, devices."""


def is_url(path: str) -> bool:
    """Returns whether a path is a URL, or a name of the Hub."""
    return bool(URL.match(path)) or path.startswith(HUB)


def find(path: str) -> Listing | None:
    """Returns the files at or below a place, sorted by name; None where nothing is.

    Hidden files and folders and `__pycache__` do not count. Raises a `DataError` where
    a folder has no file or may not be listed, a server cannot be reached, or no place
    can have that name; a `UserError` where the package that reads such URLs is missing.
    """
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if is_url(path):
        return _find_remote(path)
    try:
        place = Path(path).expanduser()
        exists = place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path[:80]!r} is no usable path ({why}); mend it") from error
    return _find_local(place) if exists else None


def open_file(entry: FileEntry) -> Any:
    """Returns a listed file as a binary file, seekable; a context manager."""
    if not is_url(entry.path):
        return open(entry.path, "rb")
    files, path = filesystem(entry.path)
    with reached(entry.path):
        return _Remote(files.open(path, "rb", block_size=REMOTE_BLOCK), url=entry.path)


def check_same(entry: FileEntry) -> None:
    """Raises a `DataError` where a file is not what it was when it was listed."""
    try:
        if is_url(entry.path):
            files, path = filesystem(entry.path)
            files.invalidate_cache()
            with reached(entry.path):
                now: tuple[int, int | str] = _identity(
                    files.info(path), like=entry.stamp
                )
        else:
            info = os.stat(entry.path)
            now = info.st_size, info.st_mtime_ns
    except OSError as error:
        raise unreadable(error, entry.path) from error
    if now != (entry.size, entry.stamp):
        raise DataError(
            f"{entry.path} changed while it was read ({entry.size:,} bytes, now "
            f"{now[0]:,}); run again when nothing writes to it"
        )


def read_lines(path: str, key: str) -> list[str]:
    """Returns the lines of a text file of at most 256 MB, without blanks at the ends.

    Raises a `DataError` that names the option `key` where it cannot be read.
    """
    try:
        folder = not is_url(path) and Path(path).expanduser().is_dir()
        if folder or (found := find(path)) is None or not found.single:
            raise FileNotFoundError("it is no file")
        (entry,) = found.entries
        with open_file(entry) as file:
            content = file.read(LIST_BYTES + 1)
        if len(content) > LIST_BYTES:
            raise ValueError(f"it has more than {LIST_BYTES >> 20} MB")
        lines = content.decode("utf-8-sig").split("\n")
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{key}={path[:80]!r} cannot be read ({error}); give a file of UTF-8 lines"
        ) from error
    return [stripped for line in lines if (stripped := line.strip())]


def unreadable(error: OSError, path: str | os.PathLike[str]) -> DataError:
    """Returns what to tell the user about a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        told = f"{path} vanished while it was being read; put it back and run again"
    elif isinstance(error, PermissionError):
        told = f"{path} may not be read; give yourself permission (chmod +r)"
    else:
        told = f"{path} cannot be read: {error.strerror or error}; check the disk"
    return DataError(told)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _find_local(place: Path) -> Listing:
    if not place.is_dir():
        info = place.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DataError(
                f"{place} is not a regular file; give a folder or a file of text"
            )
        entry = FileEntry(str(place), place.name, info.st_size, info.st_mtime_ns)
        return Listing([entry], True, [])
    found, passed_over = [], []
    for folder, folders, names in os.walk(place, onerror=_refuse):
        folders[:] = [name for name in folders if not _hidden(name)]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*names, *links]:
            if _hidden(name):
                continue
            file = Path(folder, name)
            relative = file.relative_to(place).as_posix()
            try:
                info = file.stat()
            except OSError as error:
                if not file.is_symlink():
                    raise unreadable(error, file) from error
                passed_over.append((relative, "a link to nowhere"))
                continue
            if stat.S_ISDIR(info.st_mode):  # which may be above, so for ever
                passed_over.append((relative, LINKED_FOLDER))
            elif not stat.S_ISREG(info.st_mode):
                passed_over.append((relative, "a pipe, socket or device"))
            else:
                entry = FileEntry(str(file), relative, info.st_size, info.st_mtime_ns)
                found.append(entry)
    return _listing(str(place), found, passed_over)


def _listing(
    place: str, found: list[FileEntry], passed_over: list[tuple[str, str]]
) -> Listing:
    if not found:
        raise DataError(
            f"the folder {place} has no files (hidden ones and links to folders do not "
            "count); put text files into it, or set the path to another"
        )
    return Listing(
        sorted(found, key=lambda entry: entry.name), False, sorted(passed_over)
    )


def _refuse(error: OSError) -> None:
    """Stops a walk at a folder that cannot be listed, rather than leaving it out."""
    raise unreadable(error, error.filename) from error


def _find_remote(url: str) -> Listing | None:
    files, root = filesystem(url)
    files.invalidate_cache()  # of what a listing was before
    with reached(url):
        try:
            top = files.info(root)
        except FileNotFoundError:
            return None
        if top["type"] == "file":
            name = top["name"].rstrip("/").rpartition("/")[2]
            return Listing([_entry(files, top, name)], True, [])
        infos = files.find(root, detail=True).values()
    found, above = [], top["name"].rstrip("/") + "/"
    for info in infos:
        name = info["name"].removeprefix(above)
        marker = name.endswith("/") or info["name"].rstrip("/") + "/" == above
        if not marker and not any(_hidden(part) for part in name.split("/")):
            found.append(_entry(files, info, name))
    if url.startswith(HUB) and not URL.match(url) and not PART.search(url):
        _refuse_parts(url, found)
    return _listing(url, found, [])


def _refuse_parts(url: str, found: list[FileEntry]) -> None:
    for entry in found:
        if PART.search(entry.name):
            raise DataError(
                f"of {url} the Hub has converted only a part, in "
                f"{entry.name.rpartition('/')[0]}; name that folder, or the data set's "
                f"own files: hf://datasets/{url.removeprefix(HUB)}"
            )


def _entry(files: Any, info: dict[str, Any], name: str) -> FileEntry:
    return FileEntry(files.unstrip_protocol(info["name"]), name, *_identity(info))


def _identity(info: dict[str, Any], like: int | str = "") -> tuple[int, str]:
    """Returns a file's size and stamp; the stamp of the kind of an earlier one.

    What a listing says and what is said of a single file need not be spelled alike,
    nor be as much: what one of them lacks is not compared.
    """
    known = str(like).partition("=")[0]
    keys = (known,) if known else STAMPS
    key = next((key for key in keys if info.get(key)), None)
    size = int(info.get("size") or 0)
    if key is None:
        return size, str(like)
    value = info[key]
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return size, f"{key}={str(value).strip(chr(34))}"


def filesystem(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it."""
    import fsspec

    if not URL.match(url):  # hf:OWNER/NAME/FOLDER
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(/.*)?", url.removeprefix(HUB))
        if match is None:
            raise DataError(
                f"{url!r} is no data set of the Hub; write hf:OWNER/NAME, as in "
                "hf:roneneldan/TinyStories, or hf://datasets/OWNER/NAME/FOLDER"
            )
        url = f"hf://datasets/{match[1]}@{CONVERTED}{match[2] or ''}"
    if "::" in url:
        raise DataError(
            f"{url!r} is a URL within a URL, of which files cannot be named; unpack it "
            "and give the folder"
        )
    protocol = url.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'lmx[{extra}]'" if extra else str(error)
        raise UserError(
            f"{url} needs a package that is not here; install it: {remedy}"
        ) from error
    except Exception as error:  # what file systems say of an address of theirs
        raise DataError(f"{url!r} is no usable URL ({error}); mend it") from error
    return files, path


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Turns what a server or the way to it says into errors for the user.

    Each file system has exceptions of its own, of many libraries.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise DataError(
            f"{url} may not be read ({error}); set the credentials of its server"
        ) from error
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise DataError(
            f"{url} cannot be reached ({type(error).__name__}: {told}); go online and "
            "run again, or give the path of a copy on this machine"
        ) from error


class _Remote:
    """A file behind a URL, whose errors are for the user."""

    def __init__(self, file: BinaryIO, *, url: str):
        self._file, self._url = file, url

    closed = property(lambda self: self._file.closed)

    def read(self, size: int = -1) -> bytes:
        with reached(self._url):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with reached(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Does nothing: nothing is written."""

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
