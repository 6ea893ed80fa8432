"""How long a person waits: help, a mistake, the first step cold and warm.

    python benchmarks/start_up.py [--config=experiments/quickstart.py]

Prints a table and, last, `ratio warm/cold NUMBER`: seconds from starting the process to
the first training step being reported, with the compiled programs in the cache over
without. The corpus is prepared beforehand. Goals: help ≤ 0.3 s, mistake ≤ 1 s, cold
≤ 20 s, warm ≤ 25 % of cold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(argv: Sequence[str]) -> float:
    """Returns the wall time of `lmx argv`, to its end."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lmx", *argv], cwd=ROOT, capture_output=True, check=False
    )
    return time.perf_counter() - started


def seconds_to_first_step(config: str, programs: str, *extra: str) -> float:
    """Returns the wall time until `lmx train` reports step 1; then it is killed."""
    with tempfile.TemporaryDirectory() as workdir:
        argv = [f"--config={config}", f"--workdir={workdir}/run", *extra]
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "lmx", "train", *argv],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": programs,
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if line.startswith("step "):
                    process.kill()
                    return time.perf_counter() - started
        raise SystemExit("no step was reported:\n" + "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="experiments/quickstart.py")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as programs:
        seconds_to_first_step(options.config, programs)  # prepares the corpus
    rows: dict[str, list[float]] = {"help": [], "mistake": [], "cold": [], "warm": []}
    mistake = ["train", f"--config={options.config}", "--config.model.widht=3"]
    for _ in range(options.repeats):
        rows["help"].append(seconds(["--help"]))
        rows["mistake"].append(seconds(mistake))
        with tempfile.TemporaryDirectory() as programs:
            rows["cold"].append(seconds_to_first_step(options.config, programs))
            rows["warm"].append(seconds_to_first_step(options.config, programs))
    for name, times in rows.items():
        each = " ".join(f"{t:6.2f}" for t in times)
        print(f"{name:<8} median {statistics.median(times):6.2f} s   ({each})")
    warm, cold = statistics.median(rows["warm"]), statistics.median(rows["cold"])
    print(f"ratio warm/cold {warm / cold:.3f}")


if __name__ == "__main__":
    main()
