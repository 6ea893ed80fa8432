"""Turns SIGTERM and Ctrl-C into a request that the training loop can answer.

The loop asks `requested` once a step, saves, and exits 75. This module saves nothing
and stops nothing, but for the second Ctrl-C, which ends the process at once. It watches
the signals of one process; agreement between hosts is not its business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from lmx.core.errors import INTERRUPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SHOW_CURSOR = b"\x1b[?25h"


class Preemption:
    """Context manager: `requested` becomes True at the first SIGTERM or Ctrl-C.

    A second Ctrl-C leaves the process with exit code 130, even while the main thread is
    inside a long compilation: Python would run a signal handler only after it, so the
    bytes that the C-level handler writes to a pipe are read by a thread. Outside the
    main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._watcher: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self._requested.is_set()

    def __enter__(self) -> Preemption:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)
        self._watcher = threading.Thread(
            target=self._watch, name="preemption", daemon=True
        )
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watcher is None:
            return
        for number, handler in self._handlers.items():
            # None: it was installed from C, which Python can neither call nor restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._writer)
        self._watcher.join()
        os.close(self._reader)
        self._watcher = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread; the watcher says so and counts."""
        self._requested.set()

    def _watch(self) -> None:
        """Reads one byte per signal until the pipe is closed."""
        said, interrupts = False, 0
        while arrived := os.read(self._reader, 64):
            for number in arrived:
                if number not in _SIGNALS:
                    continue
                self._requested.set()
                interrupts += number == signal.SIGINT
                if interrupts >= 2:
                    _leave()
                if not said:
                    _say(number)
                said = True


def _say(number: int) -> None:
    """Writes past Python's buffers, which the main thread may be holding."""
    name, how = "Ctrl-C", "Ctrl-C again"
    if number != signal.SIGINT:
        name, how = signal.Signals(number).name, "Ctrl-C twice"
    with contextlib.suppress(OSError):
        os.write(
            2, f"\n{name}: saving at the next step; {how} to stop at once\n".encode()
        )


def _leave() -> None:
    """Ends the process without unwinding; a progress bar may have hidden the cursor."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        os.write(2, b"stopped at once; the last checkpoint is kept\n")
    os._exit(INTERRUPTED)
