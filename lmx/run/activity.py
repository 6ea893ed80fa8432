"""What a person sees while a model is read, written, proved or compiled, on stderr.

On a terminal one line redraws itself and goes away at the end; elsewhere a plain line
tells what begins, and a long stage how far it is. Training has its own line, in
`lmx.training.progress`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from lmx.training.progress import PLAIN_SECONDS, format_duration, is_terminal


def format_bytes(count: float) -> str:
    """Returns `12 kB`, `3.5 MB`, `1.25 GB`: at most three digits and a unit."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            few = unit != "bytes" and count < 9.95
            return f"{count:.{1 if few else 0}f} {unit}"
        count /= 1000
    return f"{count:,.{2 if count < 9.995 else 1}f} GB"


class Activity:
    """Shows what it is told: `activity("reading", done, total)`, in bytes.

    `amount` writes other things than bytes.

    A total of 0 is unknown, or nothing to count. Use it as a context manager, or call
    `close`, so that a terminal gets its cursor back.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        plain_seconds: float = PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        amount: Callable[[float], str] = format_bytes,
    ):
        self._amount = amount
        self._stream = sys.stderr if stream is None else stream
        self._plain_seconds = plain_seconds
        self._clock = clock
        self._what, self._done, self._total = "", 0, 0
        self._since = self._printed = -math.inf
        self._live: Any = None

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Shows that `what` goes on and how many of its bytes are done."""
        now, new = self._clock(), what != self._what
        self._what, self._done, self._total = what, done, total
        if new:
            self._since = now
        if is_terminal(self._stream):
            self._live = self._live or self._start_live()
        elif new or now - self._printed >= self._plain_seconds:
            self._printed = now
            print(self.line(), file=self._stream, flush=True)

    def close(self) -> None:
        """Takes the line away; a second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __enter__(self) -> Activity:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def line(self) -> str:
        """Returns what is shown now."""
        if not self._total:
            return self._what
        whole = self._amount(self._total)
        if not self._done:
            return f"{self._what} {whole}"
        percent = 100 * self._done // self._total
        return f"{self._what} {self._amount(self._done)} of {whole} ({percent}%)"

    def _start_live(self) -> Any:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def render() -> Text:
            seconds = format_duration(self._clock() - self._since)
            text = Text(self.line(), style="bold", no_wrap=True, overflow="crop")
            return text.append(f"  {seconds}", style="cyan")

        console = Console(file=self._stream, force_terminal=True)
        live = Live(
            console=console,
            get_renderable=render,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
        )
        live.start()
        return live
