"""A folder that appears whole or not at all, whatever ends the program that fills it.

What is in it is the business of its caller. Only SIGKILL and a lost machine leave
something: a hidden folder beside the place, which nothing takes for a model.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from lmx.core.errors import UserError
from lmx.core.workdir import storage_error, sync_directory

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 50  # tenths of a second for threads that still write


class NewFolder(NamedTuple):
    """A folder that is being filled.

    Attributes:
      path: where it is meanwhile.
      held: a context manager in whose block signals wait, to be raised at its end.
    """

    path: Path
    held: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[NewFolder]:
    """Yields a folder to fill, which is at `path` once the block is done.

    If the block fails, or Ctrl-C, SIGTERM or SIGHUP comes, the folder is removed; the
    signal then does what it would have done.

    Raises:
      UserError: something is at `path` already, other than an empty folder.
      StorageError: the folder cannot be made.
    """
    folder = Path(path).absolute()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already; choose a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, action="write", path=folder) from error
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with _Signals() as signals:
        try:
            _make(staged, folder)
            signals.raising = True
            yield NewFolder(staged, signals.held)
            signals.raising = False
            if not signals.arrived:  # code in C may have swallowed the interrupt
                _publish(staged, folder)
        finally:
            signals.raising = False
            _remove(staged)


def _make(staged: Path, folder: Path) -> None:
    try:
        staged.mkdir()
    except OSError as error:
        raise storage_error(error, action="write", path=folder) from error


def _publish(staged: Path, folder: Path) -> None:
    try:
        staged.rename(folder)  # which may be there, if it is empty
        sync_directory(folder.parent)
    except OSError as error:
        raise storage_error(error, action="write", path=folder) from error


def _remove(staged: Path) -> None:
    for _ in range(_PATIENCE):
        shutil.rmtree(staged, ignore_errors=True)
        if not staged.exists():
            return
        time.sleep(0.1)


class _Signals:
    """Interrupts its block at the first signal, and passes it on after the block.

    Attributes:
      raising: whether a signal interrupts; those that come otherwise are only noted.
      arrived: their numbers.
    """

    def __init__(self) -> None:
        self.raising = False
        self.arrived: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        # Elsewhere Python allows no handlers. What is ignored stays so (nohup), and
        # None was installed from C, which could not be put back.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.arrived:
            signal.raise_signal(self.arrived[0])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lets signals wait until the block ends."""
        self.raising, before = False, self.raising
        try:
            yield
        finally:
            self.raising = before and not self.arrived
        if before and self.arrived:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.arrived.append(number)
        if self.raising:
            self.raising = False
            raise KeyboardInterrupt
