"""Training speed of lmx beside torch.compile and a plain Linen + optax step, on CPU.

Command: python benchmarks/train_throughput.py --torch-python=PATH
Cost:    about 8 minutes on 2 CPU cores
Expect:  lmx at 0.8 of torch's speed in both (LOG.md); the goal in bfloat16 is 1.0

All train the same shape: 6 layers, width 384, 6 heads, context 256, batch 16,
vocabulary 256. lmx runs the step that `lmx train` runs, fed by its data pipeline. The
torch model has the same norm, positions, activation, head, residual type, optimizer and
clipping (`torch_reference.py`); the plain one is what a first JAX script looks like
(`plain_linen.py`).

Every contender is a process of its own under the same allocator and XLA settings, those
of launch/environment.sh, or with --jemalloc=PATH that library. They take turns, a few
steps each: the speed of a machine drifts, so only the ratios of neighbouring turns are
compared, and their median is what the last lines tell. A turn with other programs
running measures those too: look at the spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT, BATCH, VOCAB = 6, 384, 6, 1024, 256, 16, 256
TOKENS = BATCH * CONTEXT
WARM_UP_STEPS = 3
KEEP = "glibc.malloc.mmap_threshold=68719476736:glibc.malloc.trim_threshold=68719476736"
KEEP_MEMORY = f"{KEEP}:glibc.malloc.hugetlb=1"
JEMALLOC = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
WIDE_VECTORS = "--xla_cpu_prefer_vector_width=512"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--jemalloc", metavar="PATH", help="libjemalloc.so to preload")
    parser.add_argument("--turns", type=int, default=7, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--contenders", default="lmx,torch,plain")
    parser.add_argument("--residual", help="residual dtype of all; default: the dtype")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_lmx(options.serve, options.residual or options.serve)
        return
    ratios = {d: compare(d, options) for d in options.dtypes.split(",")}
    for dtype, ratio in ratios.items():
        print(f"ratio {dtype} {ratio:.3f}")


def compare(dtype: str, options: argparse.Namespace) -> float:
    """Prints the speed of each contender and returns lmx ÷ the second one."""
    names = options.contenders.split(",")
    residual = options.residual or dtype
    programs = {
        "lmx": [sys.executable, __file__, "--serve", dtype, "--residual", residual],
        "torch": [
            options.torch_python,
            str(HERE / "torch_reference.py"),
            dtype,
            residual,
        ],
        "plain": [sys.executable, str(HERE / "plain_linen.py"), dtype],
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(
                Contender(programs[name], environment(options.jemalloc))
            )
            for name in names
        }
        for _ in range(options.turns):
            for name, contender in contenders.items():
                seconds[name].append(contender.run(options.steps) / options.steps)
    for name in names:
        best, typical = min(seconds[name]), statistics.median(seconds[name])
        line = f"{dtype:9} {name:6} {TOKENS / typical:7.0f} tokens/s"
        line += f" (best {TOKENS / best:.0f})"
        if name != "lmx":
            ours = zip(seconds[name], seconds["lmx"], strict=True)
            turns = sorted(theirs / mine for theirs, mine in ours)
            line += f"   lmx is {statistics.median(turns):.2f}x"
            line += f" [{turns[0]:.2f}, {turns[-1]:.2f}] of it"
        print(line, flush=True)
    pairs = zip(seconds[names[1]], seconds["lmx"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def environment(jemalloc: str | None) -> dict[str, str]:
    """Returns the environment of every contender."""
    if jemalloc:
        allocator = {
            "LD_PRELOAD": jemalloc,
            "MALLOC_CONF": JEMALLOC,
        }
    else:
        allocator = {"GLIBC_TUNABLES": KEEP_MEMORY}
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        **allocator,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": path,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {WIDE_VECTORS}",
    }


class Contender:
    """A process that trains so many steps when told to and says how long it took."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self._command, self._env = command, env

    def __enter__(self) -> Contender:
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear("ready")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, steps: int | str) -> float:
        """Returns the seconds of so many training steps."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._hear("seconds"))

    def _hear(self, word: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            first, _, rest = line.partition(" ")
            if first.strip() == word:
                return rest
        raise SystemExit(f"{' '.join(self._command)} ended before it was {word}")


def serve(steps: Iterator[object]) -> None:
    """Runs steps as they are asked for on stdin; waiting for the last one is timed."""
    for _ in range(WARM_UP_STEPS):
        float(next(steps))  # type: ignore[arg-type]
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss: object = None
        for _ in range(int(line)):
            loss = next(steps)
        float(loss)  # type: ignore[arg-type]
        print(f"seconds {time.perf_counter() - start}", flush=True)


def serve_lmx(dtype: str, residual: str) -> None:
    """Serves the step, the placement and the data of `lmx train`."""
    from lmx.core.config import default_config, freeze
    from lmx.data.seen import Seen
    from lmx.run.build import build
    from lmx.run.train import placed_batches
    from lmx.training.checkpoints import Checkpoints

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20_000)
        config = default_config()
        config.steps = 100_000
        config.data.path, config.data.cache_dir = str(text), folder
        config.data.tokenizer, config.data.batch_size = "char", BATCH
        shape = {
            "num_layers": LAYERS,
            "width": WIDTH,
            "num_heads": HEADS,
            "mlp_dim": HIDDEN,
            "context_length": CONTEXT,
            "vocab_size": VOCAB,
            "compute_dtype": dtype,
            "residual_dtype": residual,
        }
        for name, value in shape.items():
            config.model[name] = value
        experiment = build(freeze(config), report=lambda _: None)

        def steps():
            state, step = experiment.init(), experiment.step_function()
            seen, checkpoints = Seen(experiment.corpus), Checkpoints(folder)
            for batch in placed_batches(experiment, seen, checkpoints, 0, config.steps):
                state, metrics = step(state, batch)
                yield metrics["loss"]

        serve(steps())


if __name__ == "__main__":
    main()
