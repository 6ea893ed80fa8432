"""Kills a training run again and again and asks whether it ended as if nothing was.

Command: python benchmarks/survive.py --kills=50
Cost:    about 10 minutes on 2 CPU cores
Expect:  survived 50/50

The experiment runs in fresh work directories, each start of it killed with SIGKILL at a
random moment, until it finishes; once it runs undisturbed. Moments are steered so that
every phase is met: start (data and tokenizer, the first time from an empty cache),
compile (without the compilation cache), train, eval, save, finish. Every fifth start is
stopped with SIGTERM instead and must exit 75. A kill is survived if the run that it hit
ends with the same parameters, optimizer state and losses, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXPERIMENT = "experiments/quickstart.py:smoke"
STEPS, EVAL_EVERY, SAVE_EVERY = 40, 4, 5
PHASES = ("start", "compile", "train", "eval", "save", "finish")
PREEMPTED = 75
COMPILING, EVALUATING = "compiling the training step", "evaluating on"


@dataclasses.dataclass
class Start:
    """One start of the training command, and what can be seen of it from outside."""

    workdir: Path
    process: subprocess.Popen
    log: Path
    first_step: int
    began: float

    def said(self, words: str) -> bool:
        return words in self.log.read_text(errors="replace")

    def losses(self) -> dict[int, float]:
        """Returns step → loss of the rows in metrics.jsonl that are whole."""
        return losses(self.workdir)

    def runs(self) -> bool:
        """Returns whether it has cleared away what the start before it left."""
        return self.said(COMPILING)

    def saving(self) -> bool:
        return self.runs() and any(self.workdir.glob("checkpoints/saving/*"))

    def step(self) -> int:
        return max(self.losses(), default=0)

    def phase(self) -> str:
        """Returns what it is doing or, if it is dead, was doing."""
        if not self.runs():
            return "start"
        if self.saving():
            return "save"
        if self.said(EVALUATING):
            return "finish"
        if self.step() <= self.first_step:
            return "compile"
        return "eval" if (self.step() + 1) % EVAL_EVERY == 0 else "train"


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How the training command is started."""

    root: Path
    experiment: str = EXPERIMENT
    steps: int = STEPS

    def command(self, workdir: Path) -> list[str]:
        return [
            *(sys.executable, "-u", "-m", "lmx", "train"),
            f"--config={self.experiment}",
            f"--workdir={workdir}",
            f"--config.steps={self.steps}",
            f"--config.evals.every_steps={EVAL_EVERY}",
            f"--config.checkpoint.save_every_steps={SAVE_EVERY}",
            "--config.log.every_steps=1",
        ]

    def start(self, workdir: Path, *, compile_cache: bool = True) -> Start:
        workdir.mkdir(parents=True, exist_ok=True)
        log = workdir / "output.log"
        step = max(checkpoint_steps(workdir), default=0)
        environment = {
            **os.environ,
            "LMX_CACHE": str(self.root / "cache"),
            "JAX_ENABLE_COMPILATION_CACHE": str(compile_cache).lower(),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self.root / "xla"))
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(workdir), stdout=out, stderr=out, env=environment
            )
        return Start(workdir, process, log, step, time.monotonic())


def checkpoint_steps(workdir: Path) -> list[int]:
    return [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]


def losses(workdir: Path) -> dict[int, float]:
    """Returns step → loss, and fails on a step that was written twice."""
    found: dict[int, float] = {}
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return found
    for line in lines:
        if line.endswith(b"\n"):
            row = json.loads(line)
            assert row["step"] not in found, f"step {row['step']} was written twice"
            found[row["step"]] = row.get("train/loss")
    return found


def outcome(workdir: Path) -> tuple[str, str]:
    """Returns the digests of the last state and of all losses."""
    from lmx.training.checkpoints import Checkpoints

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        assert step is not None, f"no checkpoint in {workdir}"
        return checkpoints.digest(step), json.dumps(sorted(losses(workdir).items()))


def wait_for(start: Start, reached: Callable[[], bool], delay: float) -> bool:
    """Waits until the moment, `delay` after it; False if the process ended before."""
    while start.process.poll() is None:
        if reached():
            try:
                start.process.wait(delay)
                return False
            except subprocess.TimeoutExpired:
                return True
        time.sleep(0.002)
    return False


def strike(start: Start, moment: str, *, rng: random.Random, number: int) -> str | None:
    """Sends a signal at a moment; returns the phase that it hit, None if too late."""
    wanted_step = start.first_step + rng.randint(1, SAVE_EVERY + 2)
    reached, longest = {
        "start": (lambda: True, 4.0),
        "compile": (start.runs, 2.0),
        "train": (lambda: start.runs() and start.step() >= wanted_step, 0.05),
        "eval": (lambda: start.phase() == "eval", 0.03),
        "save": (start.saving, 0.1),
        "finish": (lambda: start.said(EVALUATING), 1.0),
    }[moment]
    if not wait_for(start, reached, rng.uniform(0, longest)):
        return None
    start.process.send_signal(number)
    start.process.wait()
    return start.phase()


def moments(rng: random.Random) -> Iterator[str]:
    """Yields every phase equally often, in random order, for ever."""
    while True:
        yield from rng.sample(PHASES, len(PHASES))


@dataclasses.dataclass
class Tally:
    """What was done and what came of it."""

    kills: int = 0
    survived: int = 0
    hit: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    terms: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


def one_run(
    trainer: Trainer,
    workdir: Path,
    *,
    kills: int,
    plan: Iterator[str],
    rng: random.Random,
    tally: Tally,
) -> int:
    """Starts a run until it finishes; returns how often it was killed."""
    done, starts = 0, 0
    while True:
        starts += 1
        assert starts < 200, f"{workdir} never finishes"
        moment = next(plan) if done < kills else None
        start = trainer.start(workdir, compile_cache=moment != "compile")
        gentle = moment is not None and starts % 5 == 0
        number = signal.SIGTERM if gentle else signal.SIGKILL
        phase = moment and strike(start, moment, rng=rng, number=number)
        code = start.process.wait()
        if code == 0:
            return done
        if code == -signal.SIGKILL and phase is not None:
            done += 1
            tally.hit[phase] += 1
        elif code == PREEMPTED and gentle:
            tally.terms += 1
        elif not (code == -signal.SIGTERM and phase == "start"):
            # Before lmx watches for signals, SIGTERM ends a process as everywhere.
            last = start.log.read_text(errors="replace").strip().splitlines()[-3:]
            tally.faults.append(f"exit {code} in {phase}: {' / '.join(last)}")
            return done


def campaign(trainer: Trainer, *, kills: int, seed: int) -> Tally:
    """Runs undisturbed, then with kills; returns what came of them."""
    rng, tally, number = random.Random(seed), Tally(), 0
    plan = moments(rng)
    workdir, expected = trainer.root / "undisturbed", None
    while tally.kills < kills:
        number += 1
        # The first killed run builds the data cache that all others use.
        disturbed = trainer.root / f"killed-{number}"
        before = len(tally.faults)
        done = one_run(
            trainer,
            disturbed,
            kills=kills - tally.kills,
            plan=plan,
            rng=rng,
            tally=tally,
        )
        if expected is None:
            start = trainer.start(workdir)
            assert start.process.wait() == 0, start.log.read_text()
            expected = outcome(workdir)
        tally.kills += done
        if len(tally.faults) == before:
            state, metrics = outcome(disturbed)
            if state != expected[0]:
                tally.faults.append(f"{disturbed}: another final state")
            if metrics != expected[1]:
                tally.faults.append(f"{disturbed}: other losses")
        if len(tally.faults) == before:
            tally.survived += done
        print(f"run {number}: {done} kills, {len(tally.faults)} faults", flush=True)
        if len(tally.faults) > before and not done:
            break
    return tally


def show(tally: Tally, seconds: float) -> None:
    print(f"\n{'killed in':<12}{'times':>6}")
    for phase in PHASES:
        print(f"{phase:<12}{tally.hit[phase]:>6}")
    print(f"{'SIGTERM, 75':<12}{tally.terms:>6}")
    for fault in tally.faults:
        print(f"fault: {fault}")
    print(f"{seconds:.0f} s\nsurvived {tally.survived}/{tally.kills}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=EXPERIMENT)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lmx-survive-") as root:
        trainer = Trainer(Path(root), options.config, options.steps)
        tally = campaign(trainer, kills=options.kills, seed=options.seed)
    show(tally, time.monotonic() - began)
    return 0 if tally.survived == tally.kills and not tally.faults else 1


if __name__ == "__main__":
    sys.exit(main())
