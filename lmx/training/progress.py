"""What a person sees while a model trains: one live line, or plain lines.

On a terminal the line redraws itself; in a pipe, a log file or a dumb terminal a plain
line appears every few seconds. It shows what it is given: nothing is measured here but
the clock. The record of a run is metrics.jsonl.
"""

from __future__ import annotations

import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.text import Text

PLAIN_SECONDS = 10.0
RATE_WINDOW = 50  # updates that the ETA is computed from
BAR_WIDTH = 24


def format_duration(seconds: float) -> str:
    """Returns `8s`, `1:05`, `2:03:04` or `3d 4h`; `--` for what is not finite."""
    if not math.isfinite(seconds):
        return "--"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}:{second:02}"
    if hours < 48:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{hours // 24}d {hours % 24}h"


def format_count(value: float) -> str:
    """Returns three digits and a suffix: `953`, `7.29k`, `18.2k`, `1.25M`."""
    for suffix in ("", "k", "M", "G"):
        # 999.5 would round to 1000, which is 1.00 of the next suffix.
        if abs(value) < 999.5:
            digits = 0 if not suffix or abs(value) >= 99.95 else 1
            digits = 2 if suffix and abs(value) < 9.995 else digits
            return f"{value:.{digits}f}{suffix}"
        value /= 1000
    return f"{value:,.3g}T"


def format_eta(seconds_per_step: float, steps_left: int) -> str:
    """Returns the time that is left, `--` while the pace is unknown."""
    if steps_left <= 0:
        return "0s"
    return format_duration(seconds_per_step * steps_left)


def format_fields(values: Mapping[str, float]) -> dict[str, str]:
    """Returns what the line says about `values`, by field, the most important first.

    Tags are those of metrics.jsonl: `perf/mfu` and `perf/data_wait` are fractions,
    `perf/tokens_per_sec` is per second; of each `eval/<set>/loss` the set is shown
    unless it is `validation`.
    """
    fields = {}
    if "train/loss" in values:
        fields["loss"] = f"loss {values['train/loss']:.3f}"
    if "train/accuracy" in values:  # of preference pairs
        fields["accuracy"] = f"right {values['train/accuracy']:.0%}"
    for tag, value in values.items():
        group, *middle, last = tag.split("/")
        if group == "eval" and last == "loss" and middle:
            name = "/".join(middle)
            fields[tag] = f"{'eval' if name == 'validation' else name} {value:.3f}"
    if "perf/tokens_per_sec" in values:
        fields["speed"] = f"{format_count(values['perf/tokens_per_sec'])} tok/s"
    if "perf/mfu" in values:
        fields["mfu"] = f"MFU {100 * values['perf/mfu']:.1f}%"
    if "perf/data_wait" in values:
        fields["wait"] = f"wait {100 * values['perf/data_wait']:.0f}%"
    return fields


class Progress:
    """Shows a run of `total_steps` that goes on from `start_step`.

    `stream` is where it is shown, standard output unless given, and `saved_age` tells
    the seconds since the newest checkpoint, None for none. Use it as a context manager,
    or call `close`, so that a terminal gets its cursor back.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        saved_age: Callable[[], float | None] = lambda: None,
        plain_seconds: float = PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total_steps = total_steps
        self.step = start_step
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._plain_seconds = plain_seconds
        self._values: dict[str, float] = {}
        self._status = ""
        self._saved_age = saved_age
        self._printed = -math.inf
        self._printed_step = -1
        self._paces: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=RATE_WINDOW
        )
        self._live: Any = None
        if is_terminal(self._stream):
            self._live = self._start_live()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows that `step` is done. `values` (tag → number) stay until replaced."""
        self.step, self._status = step, ""
        self._values.update({tag: float(value) for tag, value in values.items()})
        self._paces.append((self._clock(), step))
        if self._live is None:
            news = any(tag.startswith("eval/") for tag in values)
            late = self._clock() - self._printed >= self._plain_seconds
            if late or news or step >= self.total_steps > self._printed_step:
                self._print_line()

    def status(self, text: str) -> None:
        """Shows what is going on, such as "compiling", until the next update."""
        if self._live is None and text and text != self._status:
            self._print(text)
        self._status = text

    def say(self, text: str) -> None:
        """Prints `text` above the live line."""
        if self._live is None:
            self._print(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leaves the last line standing; a second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        elif self._printed_step not in (-1, self.step):
            self._print_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def plain_line(self) -> str:
        """Returns the whole line, for a log."""
        return " | ".join([self._head(), *self._fields().values()])

    def live_line(self, width: int, *, ascii_only: bool = False) -> Text:
        """Returns the line cut to `width` columns: first the bar goes, then fields."""
        from rich.text import Text

        head = self._head()
        fields = [self._status] if self._status else list(self._fields().values())
        while fields and len("  ".join([head, *fields])) >= width:
            # ETA stays to the last: it is what people look for.
            fields.pop(-2 if len(fields) > 1 else -1)
        line = Text(no_wrap=True, overflow="crop", end="").append(head, style="bold")
        room = width - len("  ".join([head, *fields])) - 3
        if room >= 8:
            line.append("  ")
            line.append_text(self._bar(min(room, BAR_WIDTH), ascii_only=ascii_only))
        for field in fields:
            name, _, value = field.partition(" ")
            line.append("  ")
            line.append(name, style="cyan" if value else "default")
            line.append(" " + value if value else "", style="default")
        return line

    def _head(self) -> str:
        share = self.step / self.total_steps if self.total_steps else 1.0
        # Only a finished run is at 100 %.
        percent = 100 if share >= 1 else min(99, round(100 * share))
        return f"step {self.step:,}/{self.total_steps:,} {percent:3d}%"

    def _fields(self) -> dict[str, str]:
        fields = format_fields(self._values)
        age = self._saved_age()
        if age is not None:
            fields["saved"] = f"saved {format_duration(age)} ago"
        if self._paces:
            eta = format_eta(self._pace(), self.total_steps - self.step)
            fields["eta"] = f"ETA {eta}"
        return fields

    def _pace(self) -> float:
        """Seconds a step, over the last updates; NaN until there are two."""
        (first_time, first_step), (last_time, last_step) = (
            self._paces[0],
            self._paces[-1],
        )
        steps = last_step - first_step
        return (last_time - first_time) / steps if steps > 0 else math.nan

    def _bar(self, width: int, *, ascii_only: bool) -> Text:
        from rich.text import Text

        done, left = "#-" if ascii_only else "━─"
        share = self.step / self.total_steps if self.total_steps else 1.0
        full = min(width, int(width * share))
        bar = Text(done * full, style="green", end="")
        return bar.append(left * (width - full), style="bright_black")

    def _print_line(self) -> None:
        self._printed, self._printed_step = self._clock(), self.step
        self._print(self.plain_line())

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _start_live(self) -> Any:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True)
        ascii_only = not (console.encoding or "").lower().startswith("utf")
        live = Live(
            console=console,
            get_renderable=lambda: self.live_line(console.width, ascii_only=ascii_only),
            refresh_per_second=4,
        )
        live.start()
        return live


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a line that redraws itself can be shown there."""
    # Not rich's own test: that one also believes FORCE_COLOR, in a log file too.
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
