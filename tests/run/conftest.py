"""Trained runs, and a built store, that tests of this folder share."""

import shutil
from pathlib import Path

import pytest

import lmx
from lmx.core.config import freeze
from lmx.data.built import Content, create, write_part
from lmx.inputs.tokenizers import train_tokenizer

ROOT = Path(__file__).parents[2]


def tiny_config():
    """Returns an experiment that trains in about a second, with every part in it."""
    config = lmx.default_config()
    config.steps = 8
    config.data.path = str(ROOT / "lmx")
    config.data.vocab_size = 300
    config.data.batch_size = 4
    config.model.width = 32
    config.model.num_layers = 2
    config.model.num_heads = 2
    config.model.context_length = 48
    config.optim.warmup_steps = 2
    config.optim.ema_decay = 0.5
    config.evals.every_steps = 4
    config.evals.batches = 2
    config.evals.final_batches = 3
    config.evals.prompts = ("def ",)
    config.evals.new_tokens = 8
    config.evals.compressors = ("gzip",)
    config.evals.function_samples = 2
    config.checkpoint.save_every_steps = 3
    config.log.every_steps = 1
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run; copy it before changing it."""
    from lmx.run.train import train

    workdir = tmp_path_factory.mktemp("finished")
    said = []
    summary = train(freeze(tiny_config()), workdir, say=said.append)
    return workdir, summary, said


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


FILES = {"data": "lmx/data/*.py", "inputs": "lmx/inputs/*.py"}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A built store of two sources."""
    texts = {
        name: [(path.name, path.read_text()) for path in sorted(ROOT.glob(pattern))]
        for name, pattern in FILES.items()
    }
    tokenizer = train_tokenizer("bpe", (t for d in texts.values() for _, t in d), 300)
    folder = tmp_path_factory.mktemp("built")
    directory = folder / "store"
    parts = {
        name: write_part(folder / name, tokenizer, train=some[2:], validation=some[:2])
        for name, some in texts.items()
    }
    create(
        directory,
        tokenizer,
        sources={
            name: Content(f"licence of {name}", ("train",), [part])
            for name, part in parts.items()
        },
        config={},
        card=lambda counts: ({}, ""),
    )
    return directory


def mixed_config(store: Path):
    """Returns an experiment on a store of `data` and `inputs`, in two stages."""
    config = tiny_config()
    config.data.path = str(store)
    config.data.mixture = ("data=3 inputs=1", "50%: inputs=1")
    config.evals.prompts = ()
    config.evals.function_samples = 0
    return config


@pytest.fixture(scope="session")
def mixed_run(built, tmp_path_factory):
    """A finished run on the built store."""
    from lmx.run.train import train

    workdir, said = tmp_path_factory.mktemp("mixed"), []
    summary = train(freeze(mixed_config(built)), workdir, say=said.append)
    return workdir, summary, said
