"""A run that is killed again and again ends like one that never was."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = """
import lmx

def get_config(arg=""):
    config = lmx.default_config()
    config.model.width, config.model.num_layers, config.model.num_heads = 32, 2, 2
    config.model.context_length = 32
    config.data.path = {text!r}
    config.data.tokenizer = "byte"
    config.data.batch_size = 8
    config.optim.name = "muon"
    config.optim.ema_decay = 0.9
    config.log.writers = ()
    return lmx.variant(config, arg)
"""


@pytest.fixture(scope="module")
def survive():
    path = REPOSITORY / "benchmarks" / "survive.py"
    spec = importlib.util.spec_from_file_location("survive", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["survive"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["survive"]


@pytest.fixture
def trainer(survive, tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    for source in sorted((REPOSITORY / "lmx").rglob("*.py"))[:20]:
        name = source.relative_to(REPOSITORY).as_posix().replace("/", "_")
        (texts / f"{name}.txt").write_text(source.read_text())
    experiment = tmp_path / "tiny.py"
    experiment.write_text(EXPERIMENT.format(text=str(texts)))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return survive.Trainer(tmp_path, experiment=str(experiment), steps=60)


@pytest.mark.slow
def test_five_kills_and_a_preemption_change_no_bit_of_the_result(
    survive, trainer, tmp_path
):
    plan = itertools.cycle(("compile", "train", "eval", "save", "train", "start"))
    tally = survive.Tally()
    kills = survive.one_run(
        trainer,
        tmp_path / "killed",
        kills=5,
        plan=plan,
        rng=random.Random(0),
        tally=tally,
    )
    assert tally.faults == []
    assert (kills, tally.terms) == (5, 1)
    undisturbed = trainer.start(tmp_path / "undisturbed")
    assert undisturbed.process.wait() == 0, undisturbed.log.read_text()
    state, losses = survive.outcome(tmp_path / "killed")
    assert (state, losses) == survive.outcome(tmp_path / "undisturbed")
    # A second start of a finished run has nothing to do.
    again = trainer.start(tmp_path / "killed")
    assert again.process.wait() == 0, again.log.read_text()
    assert "is finished at step" in again.log.read_text()
    assert survive.COMPILING not in again.log.read_text()
