from __future__ import annotations

import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import textwrap

import pytest

from lmx.training.progress import (
    Progress,
    format_count,
    format_duration,
    format_eta,
    format_fields,
)

VALUES = {
    "train/loss": 2.31449,
    "eval/validation/loss": 2.4,
    "perf/tokens_per_sec": 18_234.0,
    "perf/mfu": 0.4104,
    "perf/data_wait": 0.021,
}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def run(seconds_per_step, total, *, start=0, values=VALUES, **options):
    clock, stream = Clock(), io.StringIO()
    progress = Progress(total, start, stream=stream, clock=clock, **options)
    for step in range(start + 1, total + 1):
        clock.now += seconds_per_step
        progress.update(step, values)
    return progress, stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (59.4, "59s"),
        (59.6, "1:00"),
        (3599.6, "1:00:00"),
        (7384, "2:03:04"),
        (86400 * 3 + 3600 * 4, "3d 4h"),
        (math.inf, "--"),
        (math.nan, "--"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (953.2, "953"),
        (999.7, "1.00k"),
        (7294, "7.29k"),
        (18234, "18.2k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (1_254_000, "1.25M"),
        (5e12, "5T"),
    ],
)
def test_counts_have_three_digits(value, text):
    assert format_count(value) == text


def test_eta_is_pace_times_what_is_left():
    assert format_eta(0.5, 120) == "1:00"
    assert format_eta(math.nan, 120) == "--"
    assert format_eta(math.nan, 0) == "0s"


def test_fields_come_from_the_tags_of_the_record():
    assert list(format_fields({**VALUES, "eval/code/loss": 1.0}).values()) == [
        "loss 2.314",
        "eval 2.400",
        "code 1.000",
        "18.2k tok/s",
        "MFU 41.0%",
        "wait 2%",
    ]
    assert format_fields({"eval/validation/bpb": 1.0, "train/lr": 1.0}) == {}


def test_a_nan_loss_is_shown_as_nan():
    assert format_fields({"train/loss": math.nan}) == {"loss": "loss nan"}


def test_eta_counts_only_steps_of_this_run():
    progress, _ = run(2.0, 100, start=90)
    progress.step = 95
    assert progress.plain_line().endswith("ETA 10s")


def test_plain_lines_come_every_few_seconds_and_at_the_end():
    quiet = {"train/loss": 1.0}
    progress, stream = run(1.0, 25, values=quiet, plain_seconds=10.0)
    progress.close()
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["1/25", "11/25", "21/25", "25/25"]


def test_an_evaluation_is_news():
    progress, stream = run(1.0, 3, values={"train/loss": 1.0}, plain_seconds=1e9)
    before = stream.getvalue().count("\n")
    progress.update(3, {"eval/validation/loss": 1.5})
    assert stream.getvalue().count("\n") == before + 1
    assert "eval 1.500" in stream.getvalue().splitlines()[-1]


def test_plain_output_has_no_control_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress, stream = run(1.0, 3)
    progress.status("compiling")
    progress.say("a [bold] word")
    progress.close()
    assert "\x1b" not in stream.getvalue()
    assert "a [bold] word\n" in stream.getvalue()
    assert stream.getvalue().isascii()


def test_only_a_finished_run_shows_100_percent():
    progress = Progress(100_000, 99_999, stream=io.StringIO())
    assert " 99%" in progress.plain_line()
    progress.update(100_000, {})
    assert "100%" in progress.plain_line()


def test_the_age_of_the_checkpoint_is_shown_once_there_is_one():
    ages = [None, 65.0]
    progress, _ = run(1.0, 3, saved_age=lambda: ages[0])
    assert "saved" not in progress.plain_line()
    ages.pop(0)
    assert "saved 1:05 ago" in progress.plain_line()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_live_line_fits_any_terminal(width):
    progress, _ = run(1.0, 2000, saved_age=lambda: 5.0)
    line = progress.live_line(width)
    assert line.cell_len < max(width, 24)
    assert line.plain.startswith("step 2,000/2,000 100%")
    if width >= 40:
        assert "ETA 0s" in line.plain
    if width >= 120:
        assert all(field in line.plain for field in format_fields(VALUES).values())


def on_a_terminal(code, **environment):
    """Runs `code` on a pseudo-terminal of 100 columns; returns what it wrote."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    hidden = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**env, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    written = b""
    while select.select([master], [], [], 60)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(master)
    assert process.wait() == 0, written.decode()
    return written.decode()


SHORT_RUN = """
    import time
    from lmx.training.progress import Progress
    with Progress(40, saved_age=lambda: 7.0) as progress:
        progress.status("compiling")
        time.sleep(0.4)
        for step in range(1, 41):
            progress.update(step, {"train/loss": 4 / step, "perf/tokens_per_sec": 7e3})
            if step == 20:
                progress.say("evaluated [1]")
            time.sleep(0.02)
"""


def test_a_terminal_gets_one_live_line_and_its_cursor_back():
    written = on_a_terminal(SHORT_RUN)
    assert "compiling" in written
    assert "\x1b[2K" in written  # redrawn in place
    assert "\x1b[36mETA" in written  # coloured
    assert written.count("evaluated [1]\r\n") == 1
    assert written.count("40/40") <= 2
    assert written.rstrip().endswith("\x1b[?25h")


def test_no_color_is_respected_on_a_terminal():
    written = on_a_terminal(SHORT_RUN, NO_COLOR="1")
    assert "40/40" in written
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", written)


def test_a_dumb_terminal_gets_plain_lines():
    written = on_a_terminal(SHORT_RUN, TERM="dumb")
    assert "40/40" in written
    assert "\x1b" not in written
