"""A small trained model, and a store of pairs in its tokens, to start from."""

from __future__ import annotations

import numpy as np
import pytest

import lmx
from lmx.core.config import freeze
from lmx.data.built import Content, create
from lmx.inputs.preference import PREFERENCE
from lmx.inputs.tokenizers import Tokenizer
from lmx.run.train import train


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
    tokenizer = Tokenizer.load(base / "tokenizer")
    encode = PREFERENCE.encoder(tokenizer, None)
    rng = np.random.default_rng(1)

    def documents(count):
        for i in range(count):
            a, b = rng.choice(list("abcdef"), 2)
            record = {"prompt": f"{a}{b}?", "chosen": f" {a}z", "rejected": f" {b}x"}
            for example in encode(record):
                yield f"{i}", "", example

    folder = tmp_path_factory.mktemp("pairs") / "store"
    create(
        folder,
        tokenizer,
        sources={"pairs": Content("CC0", ("train",), documents(40), documents(8), 2)},
        config={},
        card=lambda counts: ({}, ""),
    )
    return folder


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
