"""A manifest of a directory: size and SHA-256 of every file, and of itself.

Orbax notices neither a flipped bit nor a lost file; this does. A directory verifies if
it holds exactly the files of its manifest, byte for byte. The manifest guards against
accidents, not against somebody who may rewrite the directory, but a hostile one can do
no harm: no path in it is ever opened, only compared with the files that are there. What
the files mean is not known here.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.core.errors import CheckpointError
from lmx.core.workdir import sync_directory, write_atomic

MANIFEST = "manifest.json"

_FORMAT = 1
_LARGEST_MANIFEST = 256 * 2**20
_THREADS = 4
_KEYS = {"format", "step", "facts", "files", "sha256"}


class ManifestError(CheckpointError):
    """A directory is not what its manifest says; the text names the file and why."""


@dataclasses.dataclass(frozen=True)
class FileFact:
    """What a file must be."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest that was found true: the step, who wrote it, and its files."""

    step: int
    facts: Mapping[str, Any]
    files: Mapping[str, FileFact]


def write_manifest(
    directory: str | os.PathLike[str], *, step: int, facts: Mapping[str, Any]
) -> Manifest:
    """Hashes and syncs every file below a directory, then writes its manifest, durably.

    Args:
      directory: complete; nothing may be added or changed afterwards.
      step: the training step it belongs to.
      facts: what else a reader wants to know, JSON values only.

    Raises:
      ManifestError: there is something other than files and directories below it.
      OSError, StorageError: it cannot be read or written.
    """
    root = Path(directory)
    paths, folders = _walk(root)
    paths.pop(MANIFEST, None)
    files = _hash_all(paths, sync=True)
    # Deepest first: a synced directory must not name an unsynced one.
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        sync_directory(folder)
    manifest = Manifest(step=step, facts=dict(facts), files=files)
    write_atomic(root / MANIFEST, _encode(manifest))
    return manifest


def read(directory: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest of a directory, whose files are not read.

    Raises:
      ManifestError: the manifest is missing or damaged.
    """
    return _decode(_read(Path(directory) / MANIFEST))


def verify(directory: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest of a directory that holds exactly what it says.

    Raises:
      ManifestError: the manifest is missing or damaged, or a file is missing, extra,
        unreadable, of another size or of another content.
    """
    root = Path(directory)
    try:
        paths, _ = _walk(root)
    except OSError as error:
        raise ManifestError(f"cannot be read: {error.strerror}") from error
    if MANIFEST not in paths:
        what = "missing" if paths else "missing: the directory is empty"
        raise ManifestError(f"{MANIFEST}: {what}")
    manifest = _decode(_read(paths.pop(MANIFEST)))
    for name, fact in manifest.files.items():
        if name not in paths:
            raise ManifestError(f"{name}: missing")
        size = paths[name].stat().st_size
        if size != fact.size:
            raise ManifestError(f"{name}: {size} bytes instead of {fact.size}")
    for name in paths:
        if name not in manifest.files:
            raise ManifestError(f"{name}: not in {MANIFEST}")
    for name, found in _hash_all(paths, sync=False).items():
        fact = manifest.files[name]
        if found != fact:
            raise ManifestError(
                f"{name}: sha256 differs ({found.sha256[:8]} instead of "
                f"{fact.sha256[:8]})"
            )
    return manifest


def _walk(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Returns the regular files by relative name, in order, and all directories."""
    files: dict[str, Path] = {}
    folders = [root]
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append(path)
                elif stat.S_ISREG(mode):
                    files[path.relative_to(root).as_posix()] = path
                else:
                    name = path.relative_to(root).as_posix()
                    raise ManifestError(f"{name}: neither a file nor a directory")
    return dict(sorted(files.items())), folders


def _hash_all(paths: Mapping[str, Path], *, sync: bool) -> dict[str, FileFact]:
    """Hashes files in parallel threads: hashing and reading release the interpreter."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        facts = pool.map(lambda path: _hash(path, sync=sync), paths.values())
        return dict(zip(paths, facts, strict=True))


def _hash(path: Path, *, sync: bool) -> FileFact:
    """Returns size and hash of a file; with `sync` it is on the disk afterwards."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            size = file.tell()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        if sync:
            raise
        raise ManifestError(f"{path.name}: cannot be read: {error.strerror}") from error
    return FileFact(size=size, sha256=digest.hexdigest())


def _read(path: Path) -> bytes:
    """Returns the bytes of a manifest of sane size."""
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ManifestError(f"{MANIFEST}: damaged: too large")
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{MANIFEST}: cannot be read: {error.strerror}") from error


def _encode(manifest: Manifest) -> bytes:
    """Returns the one byte string that stands for a manifest, its own hash included."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "step": manifest.step,
        "facts": manifest.facts,
        "files": {
            name: {"size": fact.size, "sha256": fact.sha256}
            for name, fact in manifest.files.items()
        },
    }
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content)


def _canonical(content: Mapping[str, Any]) -> bytes:
    """Returns JSON with one spelling: sorted keys, fixed indent, ASCII only."""
    return (
        json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n"
    ).encode("ascii")


def _decode(raw: bytes) -> Manifest:
    """Returns the manifest that `raw` spells, if it is the canonical spelling."""
    damaged = ManifestError(f"{MANIFEST}: damaged: not what was written")
    try:
        content = json.loads(raw)
        if content["format"] != _FORMAT and _is_intact(content, raw):
            raise ManifestError(
                f"{MANIFEST}: format {content['format']!r} was written by another lmx"
            )
        if set(content) != _KEYS or not _is_intact(content, raw):
            raise damaged
        files = {
            str(name): FileFact(size=int(fact["size"]), sha256=str(fact["sha256"]))
            for name, fact in content["files"].items()
        }
        return Manifest(
            step=int(content["step"]), facts=dict(content["facts"]), files=files
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        raise damaged from error


def _is_intact(content: dict[str, Any], raw: bytes) -> bool:
    """Returns whether `raw` is canonical and holds the hash of the rest of itself."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(_canonical(rest)).hexdigest()
    return content.get("sha256") == digest and _canonical(content) == raw
