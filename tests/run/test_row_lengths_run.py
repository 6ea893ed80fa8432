"""A run whose rows grow longer resumes at any step, and is the same on any devices.

This file runs itself as a program for more devices than one: they are fake ones of the
CPU backend, which must exist before JAX starts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ENTRIES = ("12", "50%: 48")
ROOT = Path(__file__).parents[2]


def growing_config():
    """Returns 6 steps, three with rows of 12 tokens and three with rows of 48."""
    import lmx

    config = lmx.default_config()
    config.steps = 6
    config.data.path = str(ROOT / "lmx" / "core")
    config.data.tokenizer = "byte"
    config.data.batch_size = 4
    config.data.row_lengths = ENTRIES
    config.model.width = 32
    config.model.num_layers = 1
    config.model.num_heads = 2
    config.model.context_length = 48
    config.optim.warmup_steps = 2
    config.evals.every_steps = 3
    config.evals.batches = 2
    config.evals.final_batches = 3
    config.checkpoint.save_every_steps = 1
    config.checkpoint.keep_last = 9
    config.log.every_steps = 1
    return config


def losses(workdir: Path) -> list[float]:
    from lmx.training.metrics import read_metrics

    return [row["train/loss"] for row in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    from lmx.core.config import freeze
    from lmx.run.train import train

    workdir, said = tmp_path_factory.mktemp("grown"), io.StringIO()
    with contextlib.redirect_stdout(said):
        train(freeze(growing_config()), workdir)
    return workdir, said.getvalue()


def test_stages_and_their_compilations_are_said_and_nothing_is_wrong(grown):
    _, said = grown
    assert "rows of 12 tokens, of 48 from step 4 on" in said
    assert said.count("the training step was compiled for rows of 48 tokens") == 1
    assert "compiled again" not in said


def test_a_lone_length_is_said_as_a_whole_line():
    from lmx.core.schema import DataConfig
    from lmx.data.stages import RowLengths
    from lmx.run.train import lengths_line

    lengths = RowLengths(DataConfig(row_lengths=("48",)), context_length=48, steps=6)
    assert lengths_line(lengths).strip() == "rows of 48 tokens"


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_resumed_at_any_step_is_one_that_never_stopped(grown, tmp_path, step):
    from lmx.core.config import freeze
    from lmx.run.train import train
    from lmx.training.checkpoints import Checkpoints

    copy = Path(shutil.copytree(grown[0], tmp_path / "run"))
    for later in range(step + 1, 7):
        shutil.rmtree(copy / "checkpoints" / str(later))
    (copy / "summary.json").unlink()
    said: list[str] = []
    config = freeze(growing_config())
    train(config, copy, say=said.append)
    assert f"resuming from step {step}" in said
    assert losses(copy) == losses(grown[0])
    facts = []
    for folder in (grown[0], copy):
        with Checkpoints(folder / "checkpoints", config=config.checkpoint) as kept:
            facts.append(kept.facts(6)["seen"])
    assert facts[0] == facts[1]
    assert (copy / "samples.txt").read_text() == (grown[0] / "samples.txt").read_text()


def test_what_was_seen_is_what_uncut_rows_would_have_shown(grown):
    from lmx.core.config import freeze
    from lmx.data.pipeline import prepare
    from lmx.training.manifest import read

    config = freeze(growing_config())
    corpus = prepare(config.data, context_length=48, seed=0, steps=6, report=str)
    batches = corpus.train_batches()
    batches.lengths = None
    total = sum(int(batches.at(step).loss_weights.sum()) for step in range(6))
    assert read(grown[0] / "checkpoints" / "6").facts["seen"]["tokens"] == total


MESHES = {
    "pmap": {"parallel.step": "pmap", "optim.accumulate_steps": 2},
    "fsdp": {"parallel.fsdp": 2, "optim.accumulate_steps": 1},
}


def test_losses_are_those_of_one_device(grown, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ
        | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in MESHES:
        np.testing.assert_allclose(found[name], losses(grown[0]), rtol=2e-4)


def main() -> None:
    from lmx.core.config import freeze, override
    from lmx.run.train import train

    found = {}
    for name, options in MESHES.items():
        config = growing_config()
        for key, value in options.items():
            override(config, key, str(value))
        workdir = Path(sys.argv[1]) / name
        train(freeze(config), workdir, say=str)
        found[name] = losses(workdir)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
