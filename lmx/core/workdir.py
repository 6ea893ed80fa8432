"""The work directory of a run: who owns it, and how small files are written into it.

Layout: config.json, metrics.jsonl, tensorboard/, loss.png, samples.txt, tokenizer/,
checkpoints/<step>/, lock. This module knows the lock and atomic writes; what the other
files mean is the business of the packages that write them. No JAX.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lmx.core.errors import StorageError

LOCK = "lock"

_SPACE = "free some space or choose another {option}"
_REMEDIES = (
    ((errno.ENOSPC, errno.EDQUOT), _SPACE),
    (
        (errno.EFBIG,),
        "raise the file size limit (ulimit -f) or choose another {option}",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "make it writable for this user or choose another {option}",
    ),
    (
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
        "move what is in the way or choose another {option}",
    ),
)
_UNKNOWN_REMEDY = "check the disk or choose another {option}"


def storage_errno(error: BaseException) -> int | None:
    """Returns the error number behind a failure of the disk; None if it is not one.

    Libraries written in C++ pass on the words of the system and not its number.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    known = [code for codes, _ in _REMEDIES for code in codes] + [errno.EIO]
    return next((code for code in known if os.strerror(code) in str(error)), None)


def storage_error(
    error: BaseException,
    *,
    action: str,
    path: str | os.PathLike[str],
    option: str = "--workdir",
) -> StorageError:
    """Returns the `StorageError` for a failure to read or write, with its remedy.

    Args:
      error: one that has a `storage_errno`.
      action: what was attempted, such as "save checkpoint 300 to".
      path: the file or directory that the message names.
      option: the command's, that says where to write.
    """
    code = storage_errno(error)
    why = str(error) if code is None else os.strerror(code)
    remedy = next((text for codes, text in _REMEDIES if code in codes), _UNKNOWN_REMEDY)
    remedy = remedy.format(option=option)
    return StorageError(f"cannot {action} {path}: {why}; {remedy}")


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file whole or not at all, and durably: a reader never sees a part.

    Raises:
      StorageError: the disk is full or the directory cannot be written; `path` then
        holds what it held before.
    """
    path = Path(path)
    raw = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(partial, "xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, action="write", path=path) from error


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Makes renames and new files of a directory durable; raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claim(
    workdir: str | os.PathLike[str], *, option: str = "--workdir"
) -> Iterator[Path]:
    """Creates the work directory and holds it against other runs while the block runs.

    The lock belongs to the process, not to the file: it is gone when the process is,
    however it ended. With several hosts, only the first one claims.

    Raises:
      StorageError: another process holds it (named by host and pid), or the directory
        cannot be created or written.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Not "w": opening must not wipe the name of the process that holds the lock.
        file = open(workdir / LOCK, "a+b")  # noqa: SIM115
    except OSError as error:
        raise storage_error(
            error, action="use workdir", path=workdir, option=option
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(_in_use(workdir, option)) from error
        except OSError as error:
            raise storage_error(
                error, action="lock", path=workdir, option=option
            ) from error
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            file.truncate(0)
            file.write(json.dumps(owner).encode() + b"\n")
            file.flush()
        except OSError as error:
            raise storage_error(
                error, action="write", path=workdir, option=option
            ) from error
        yield workdir


def _in_use(workdir: Path, option: str) -> str:
    """Returns the message for a workdir that another process holds."""
    try:
        owner = json.loads((workdir / LOCK).read_bytes())
        who = f"pid {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        # The other run has the lock but has not written its name yet.
        who = "another process"
    return f"{workdir} is in use by {who}; stop it or choose another {option}"
