"""Runs a program that a model wrote, where it can do no harm.

Each program gets a process of its own (`sandbox_worker.py`) with limits on time and
memory, whose system calls are filtered (seccomp): it cannot write or remove a file,
open a connection, start a process or signal one. It can read what this user can, and
tell nobody. Where the kernel has no such filter, nothing is run.
"""

from __future__ import annotations

import functools
import json
import platform
import secrets
import subprocess
import sys
from pathlib import Path

from lmx.core.errors import UserError

SECONDS, MEMORY_BYTES = 5.0, 512 << 20
START_SECONDS = 30.0  # of a process, on a machine that is busy
UNSAFE = 77  # the exit code of a worker that could not filter


@functools.lru_cache(maxsize=4096)
def passes(program: str, *, seconds: float = SECONDS) -> bool:
    """Returns whether a program runs to its end, within `seconds` of CPU time.

    Raises:
      UserError: it cannot be run safely here.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise _unsafe(f"{platform.system()} on {platform.machine()}")
    told = secrets.token_hex(16)  # what is printed can be faked, this only with effort
    request = {
        "program": program,
        "told": told,
        "seconds": seconds,
        "memory_bytes": MEMORY_BYTES,
    }
    worker = Path(__file__).with_name("sandbox_worker.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", str(worker)],
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},  # no passwords and tokens
            start_new_session=True,  # Ctrl-C is for the caller
            timeout=START_SECONDS + 2 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:  # it slept; its process is gone
        return False
    if done.returncode == UNSAFE:
        raise _unsafe("this kernel")
    return done.stdout == told.encode()


def _unsafe(where: str) -> UserError:
    return UserError(
        f"unit tests run what the model wrote, and {where} has no seccomp filter that "
        "lmx knows; use Linux on x86_64, or leave these tasks out"
    )
