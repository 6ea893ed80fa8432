"""What each switch of launch/environment.sh gives, and one more, one by one.

    python benchmarks/process_switches.py [--turns=5] [--jemalloc=PATH]

Training steps of `train_throughput.py` in bfloat16 under each setting, in
turns; then the time to import JAX with and without compiled bytecode. The compilation
cache is measured by `start_up.py`. Last lines: `ratio NAME NUMBER`, speed over that of
a process without any switch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import train_throughput
from train_throughput import JEMALLOC, KEEP, KEEP_MEMORY, WIDE_VECTORS, Contender

SWITCHES = {
    "nothing": {},
    "keep-memory": {"GLIBC_TUNABLES": KEEP},
    "huge-pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "both": {"GLIBC_TUNABLES": KEEP_MEMORY},
    "wide-vectors": {"XLA_FLAGS": WIDE_VECTORS},
    "one-thread-xla": {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"},
}


def step_seconds(switches: dict, turns: int) -> dict[str, list[float]]:
    """Returns seconds per training step of each setting, taken in turns."""
    clean = {
        k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "XLA_FLAGS")
    }
    clean.pop("GLIBC_TUNABLES", None)
    root = str(train_throughput.HERE.parent)
    clean |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    program = [sys.executable, train_throughput.__file__, "--serve", "bfloat16"]
    seconds: dict[str, list[float]] = {name: [] for name in switches}
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(Contender(program, {**clean, **switch}))
            for name, switch in switches.items()
        }
        for _ in range(turns):
            for name, contender in contenders.items():
                seconds[name].append(contender.run(2) / 2)
    return seconds


def import_seconds(env: dict[str, str]) -> float:
    """Returns the time to start Python and import JAX, the smallest of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        subprocess.run(command, check=True, env={**os.environ, **env})
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--jemalloc", metavar="PATH", help="a libjemalloc.so")
    options = parser.parse_args()
    switches: dict[str, dict[str, str]] = dict(SWITCHES)
    if options.jemalloc:
        switches["jemalloc"] = {
            "LD_PRELOAD": options.jemalloc,
            "MALLOC_CONF": JEMALLOC,
        }
    seconds = step_seconds(switches, options.turns)
    for name, times in seconds.items():
        print(f"{name:15} {1e3 * statistics.median(times):7.0f} ms a step")
    with tempfile.TemporaryDirectory() as nowhere:
        # Bytecode that is looked for elsewhere and never written is compiled each time.
        without = {"PYTHONPYCACHEPREFIX": nowhere, "PYTHONDONTWRITEBYTECODE": "1"}
        slow, quick = import_seconds(without), import_seconds({})
    print(f"import jax      {slow:.2f} s without bytecode, {quick:.2f} s with")
    base = seconds["nothing"]
    for name, times in seconds.items():
        pairs = zip(base, times, strict=True)
        print(f"ratio {name} {statistics.median(b / t for b, t in pairs):.3f}")
    print(f"ratio bytecode {slow / quick:.3f}")


if __name__ == "__main__":
    main()
