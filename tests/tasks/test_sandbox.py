"""Programs of a model run to their end, and can do no harm before it."""

from __future__ import annotations

import platform
import sys

import pytest

from lmx.core.errors import UserError
from lmx.tasks import sandbox
from lmx.tasks.sandbox import passes

linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="no filter here"
)
PASSING = [
    "x = 1\nassert x == 1",
    "import math, re, collections, random, json, decimal\nprint(math.pi)",
    "open('/etc/hosts').close()",
]
FAILING = {
    "an assertion": "assert False",
    "an exit": "import os\nos._exit(0)",
    "a wrong syntax": "def",
    "a socket": "import socket\nsocket.socket()",
    "a fork": "import os\nos.fork()",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "a signal": "import os\nos.kill(os.getppid(), 0)",
    "a thread": "import _thread\n_thread.start_new_thread(print, ())",
    "too much memory": "x = bytearray(10**9)",
    "a loop": "while True: pass",
    "a limit": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))",
    "a call past Python": (
        "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0"
    ),
}


@linux
@pytest.mark.parametrize("program", PASSING)
def test_a_program_that_comes_to_its_end_passes(program):
    assert passes(program)


@linux
@pytest.mark.parametrize("program", FAILING.values(), ids=FAILING)
def test_what_a_program_must_not_do_fails(program):
    assert not passes(program, seconds=0.2)


@linux
def test_no_file_is_made_changed_or_removed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for attempt in (
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os\nos.unlink({str(victim)!r})",
        f"import os\nos.rename({str(victim)!r}, {str(tmp_path / 'b')!r})",
        f"import os\nos.chmod({str(victim)!r}, 0)",
        f"import os\nos.mkdir({str(tmp_path / 'c')!r})",
    ):
        assert not passes(attempt, seconds=0.2)
    assert [p.name for p in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "whole"


def test_where_it_is_not_safe_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="riscv64 has no seccomp filter"):
        passes("assert True  # not cached")
