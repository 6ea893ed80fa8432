"""A small trained model, and a store of pairs in its tokens, to start from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lmx
from lmx.core.config import freeze, load_experiment
from lmx.curate.build import build
from lmx.curate.config import build_config
from lmx.curate.runner import Processes
from lmx.run.train import train

RECIPE = Path(__file__).parents[2] / "experiments/data/preferences.py"


@pytest.fixture(scope="session")
def small_config():
    """Returns a config of a small model on a path."""
    return make_config


def make_config(path, *, context_length=48, steps=8):
    config = lmx.default_config()
    config.model.width, config.model.num_layers = 16, 1
    config.model.num_heads = config.model.num_kv_heads = 2
    config.model.context_length = context_length
    config.model.compute_dtype = "float32"
    config.data.path = str(path)
    config.data.tokenizer = "byte"
    config.data.batch_size = 4
    config.data.prefetch_batches = 0
    config.steps = steps
    config.optim.warmup_steps = 1
    config.optim.schedule = "constant"
    config.optim.learning_rate = 0.01
    config.evals.every_steps = config.steps
    config.checkpoint.save_every_steps = config.steps // 2
    config.log.every_steps = 1
    config.log.writers = ()
    return config


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["red", "blue", "far"], 9)) for _ in range(60)]
    (folder / "words.txt").write_text("\n\n".join(lines))
    return folder / "words.txt"


@pytest.fixture(scope="session")
def base(words, tmp_path_factory):
    """The workdir of a model."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    train(freeze(make_config(words)), workdir, say=lambda text: None)
    return workdir


@pytest.fixture(scope="session")
def pairs(base, tmp_path_factory):
    """A store of pairs, of which the better one has a 'z'."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(1)
    with open(folder / "pairs.jsonl", "w") as file:
        for _ in range(48):
            a, b, c = rng.choice(list("abcdefghijkl"), 3)
            sides = {"chosen": f" {a}z", "rejected": f" {b}x"}
            file.write(json.dumps({"prompt": f"{a}{b}{c}?", **sides}) + "\n")
    config = load_experiment(f"{RECIPE}:{folder / 'pairs.jsonl'}")
    config.tokenizer = str(base / "tokenizer")
    config.validation_fraction = 0.2
    build(
        build_config(config),
        folder / "store",
        runner=Processes(1),
        stage=lambda name, items: lambda done: None,
    )
    return folder / "store"


@pytest.fixture
def pair_config(base, pairs):
    """Returns a config of an objective on pairs, from the small model."""

    def make(name, **options):
        config = make_config(pairs, **options)
        config.model.init_from = str(base)
        config.data.packing = "best_fit"
        config.objective.name = name
        return config

    return make
