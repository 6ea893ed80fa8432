"""Training that starts from another model: its weights, shape and tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lmx
from lmx.core.errors import UserError


def config_for(text, cache):
    config = lmx.default_config()
    config.steps = 2
    config.seed = 7
    config.data.path, config.data.cache_dir = str(text), str(cache)
    config.data.tokenizer, config.data.batch_size = "byte", 2
    config.model.width, config.model.num_layers, config.model.num_heads = 16, 2, 2
    config.model.context_length = 16
    config.optim.warmup_steps, config.optim.learning_rate = 0, 1e-9
    config.evals.batches = config.evals.final_batches = 1
    config.log.writers = ()
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    text = folder / "text"
    text.mkdir()
    for i in range(30):
        (text / f"{i}.txt").write_text(f"{i} is a number and so is {i + 1}. " * 5)
    return (
        text,
        folder / "cache",
        lmx.train(config_for(text, folder / "cache"), folder / "run"),
        folder,
    )


@pytest.mark.parametrize("form", ["workdir", "hf"])
def test_training_starts_from_the_weights_and_shape_of_another_model(
    trained, form, tmp_path
):
    text, cache, model, folder = trained
    start = folder / "run" if form == "workdir" else model.save(tmp_path / "hf")
    config = config_for(text, cache)
    config.seed, config.steps = 8, 1
    config.model.width, config.model.num_layers = 32, 1  # the source's are taken
    config.model.init_from = str(start)
    tuned = lmx.train(config, tmp_path / "tuned")
    assert tuned.model.width == 16
    assert tuned.tokenizer.encode("number") == model.tokenizer.encode("number")
    before, after = model.logits([1, 5, 9]), tuned.logits([1, 5, 9])
    np.testing.assert_allclose(after, before, atol=1e-3)
    # It resumes: the same command goes on to more steps.
    config.steps = 2
    assert lmx.train(config, tmp_path / "tuned").step == 2
    saved = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert saved["model"]["init_from"] == str(start)


def test_a_start_that_is_nothing_is_refused(trained, tmp_path):
    text, cache, _, _ = trained
    config = config_for(text, cache)
    config.model.init_from = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing"):
        lmx.train(config, tmp_path / "tuned")
