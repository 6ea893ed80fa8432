"""The line of a working command says what is done of what, on stderr."""

from __future__ import annotations

import io

import pytest

from lmx.run.activity import Activity, format_bytes


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345, "12 kB"),
        (999_600, "1.0 MB"),
        (538_060_032, "538 MB"),
        (1_250_000_000, "1.25 GB"),
        (41_830_000_000, "41.8 GB"),
    ],
)
def test_bytes_have_a_unit_and_few_digits(count, text):
    assert format_bytes(count) == text


def shown(stream, times):
    """Shows two stages, at the given seconds, and returns what was written."""
    clock = iter(times)
    with Activity(stream=stream, plain_seconds=10, clock=lambda: next(clock)) as show:
        for done in range(0, 5_000_000, 1_000_000):
            show("reading", done, 4_000_000)
        show("proving")
    return stream.getvalue()


def test_off_a_terminal_a_stage_is_a_line_and_a_long_one_a_line_now_and_then():
    assert shown(io.StringIO(), [0, 1, 9, 11, 12, 13]).splitlines() == [
        "reading 4.0 MB",
        "reading 3.0 MB of 4.0 MB (75%)",
        "proving",
    ]


def test_on_a_terminal_it_is_one_line_that_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = shown(Terminal(), iter(range(1000)))
    assert "\x1b[?25l" in written  # the cursor goes
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # and is back
    assert "proving" in written
    assert written.rindex("\x1b[2K") > written.rindex("proving")  # the line is wiped
    assert "\x1b[1m" in written or "\x1b[36m" in written


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    written = shown(Terminal(), iter(range(1000)))
    assert "proving" in written
    assert "\x1b[36m" not in written


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Terminal(), range(1000))
