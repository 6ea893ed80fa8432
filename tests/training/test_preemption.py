"""Signals become a request; the second Ctrl-C ends the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lmx.core.errors import INTERRUPTED
from lmx.training.preemption import Preemption

LOOP = """
import hashlib, sys, time
from lmx.training.preemption import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
    if sys.argv[1] == "native":  # like a compilation: no bytecode runs for minutes
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
    while not preemption.requested:
        time.sleep(0.01)
    if sys.argv[1] == "ignore":
        time.sleep(60)
print("saved", flush=True)
"""


def _start(mode):
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_loop_save(number):
    with _start("polite") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "saved\n")
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert "saving at the next step" in lines[0]


@pytest.mark.parametrize("mode", ["ignore", "native"])
def test_the_second_interrupt_exits_130_even_inside_native_code(mode):
    with _start(mode) as process:
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline() + process.stderr.readline()
        assert "Ctrl-C again" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == INTERRUPTED


def test_more_sigterms_do_not_stop_the_save():
    with _start("ignore") as process:
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()


def test_the_flag_is_set_and_old_handlers_come_back():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with Preemption() as preemption:
        assert not preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not preemption.requested and time.monotonic() < deadline:
            time.sleep(0.001)
        assert preemption.requested
    assert {n: signal.getsignal(n) for n in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_it_does_nothing_outside_the_main_thread():
    seen = []

    def use():
        with Preemption() as preemption:
            seen.append(preemption.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is before
