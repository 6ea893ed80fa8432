"""The process in which one program runs; started by `sandbox.py`, never imported.

It reads what to run and within which limits from stdin, gives up all that it could do
harm with, runs the program and then writes the word that it was given. It needs only
the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys

UNSAFE = 77
# <linux/prctl.h>, <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
X86_64, X32 = 0xC000003E, 0x40000000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
# Of <asm/unistd_64.h>: memory, time, reading, and ending.
CALLS = {
    **{"read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6},
    **{"poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12},
    **{"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17},
    **{"readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24},
    **{"mremap": 25, "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39},
    **{"exit": 60, "uname": 63, "getcwd": 79, "readlink": 89, "gettimeofday": 96},
    **{"getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102},
    **{"getgid": 104, "geteuid": 107, "getegid": 108, "sigaltstack": 131},
    **{"gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204},
    **{"getdents64": 217, "clock_gettime": 228, "clock_getres": 229},
    **{"clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262},
    **{"pselect6": 270, "ppoll": 271, "getrandom": 318, "statx": 332, "rseq": 334},
}
OPEN, OPENAT, IOCTL, FCNTL = 2, 257, 16, 72
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
IOCTLS = (0x5401, 0x5450, 0x5451)  # is it a terminal; keep or close at exec
FCNTLS = (1, 2, 3, 1030)  # flags of a descriptor, and a copy of one


def instructions() -> list[tuple[int, int, int, int]]:
    """Returns the filter: (code, jump if true, jump if false, operand)."""
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, X86_64),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
    ]
    for number, argument in ((OPEN, 1), (OPENAT, 2)):
        code += [
            (EQUAL, 0, 4, number),
            (LOAD, 0, 0, ARGUMENTS + 8 * argument),
            (ANY_BIT, 1, 0, WRITING),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, REFUSE),
        ]
    for number, known in ((IOCTL, IOCTLS), (FCNTL, FCNTLS)):
        code += [
            (EQUAL, 0, 2 + 2 * len(known), number),
            (LOAD, 0, 0, ARGUMENTS + 8),
            *(
                step
                for k in known
                for step in ((EQUAL, 0, 1, k), (RETURN, 0, 0, ALLOW))
            ),
            (RETURN, 0, 0, REFUSE),
        ]
    for number in CALLS.values():
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return [*code, (RETURN, 0, 0, REFUSE)]


def confine(seconds: float, memory_bytes: int) -> None:
    """Gives up, for this process, what a program must not have; OSError: cannot."""
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 1 << 20,  # writing is refused; this is for what slips
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds)  # of one that sleeps
    code = b"".join(struct.pack("HBBI", *step) for step in instructions())
    buffer = ctypes.create_string_buffer(code, len(code))
    count = len(code) // struct.calcsize("HBBI")
    program = struct.pack("HxxxxxxP", count, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(
        SET_SECCOMP, FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp")


def main() -> int:
    """Runs the program of stdin; writes its word where it came to its end."""
    request = json.load(sys.stdin)
    answer = os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    try:
        confine(request["seconds"], request["memory_bytes"])
    except OSError:
        return UNSAFE
    told = request.pop("told")
    with contextlib.suppress(BaseException):
        exec(compile(request["program"], "<program>", "exec"), {"__name__": "program"})
        os.write(answer, told.encode())
    return 0


if __name__ == "__main__":
    os._exit(main())
