"""Runs that train an adapter: small checkpoints, exact resume, one joined model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import lmx
from lmx.core.errors import DONE, DataError, UserError
from lmx.core.trees import flatten_with_names
from lmx.interop.safetensors_file import SafetensorsFile

IDS = [1, 5, 9, 14]


def config_for(folder, start=None, **adapter):
    config = lmx.default_config()
    config.steps, config.data.path = 2, str(folder / "text")
    config.data.cache_dir, config.data.tokenizer = str(folder / "cache"), "byte"
    config.data.batch_size, config.model.context_length = 2, 16
    config.model.width, config.model.num_layers, config.model.num_heads = 32, 2, 2
    config.model.compute_dtype = "float32"
    config.optim.warmup_steps, config.optim.schedule = 0, "constant"
    config.optim.learning_rate = 1e-2
    config.evals.batches = config.evals.final_batches = 1
    config.log.writers = ()
    config.model.init_from = start and str(start)
    for name, value in adapter.items():
        config.adapter[name] = value
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with text, and the run `base` on it."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "text").mkdir()
    for i in range(30):
        text = f"{i} is a number and so is {i + 1}. " * 5
        (folder / "text" / f"{i}.txt").write_text(text)
    lmx.train(config_for(folder), folder / "base")
    return folder


@pytest.fixture(scope="module")
def tuned(folder):
    """A run of LoRA on `base`, of 4 steps."""
    config = config_for(folder, folder / "base", method="lora", rank=4)
    config.steps, config.checkpoint.save_every_steps = 4, 2
    config.evals.prompts = ("1 is",)
    return lmx.train(config, folder / "tuned")


def same(first, second):
    pairs = zip(flatten_with_names(first), flatten_with_names(second), strict=True)
    return all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)


def test_a_checkpoint_holds_the_adapter_and_names_its_base(folder, tuned):
    saved = folder / "tuned" / "checkpoints" / "4" / "manifest.json"
    facts = json.loads(saved.read_text())["facts"]
    assert facts["base"]["path"] == str(folder / "base")
    assert facts["base"]["step"] == 2
    names = {name for name, _ in flatten_with_names(tuned.change.params)}
    assert names == {f"{n}/{x}" for n in tuned.change.adapter.targets for x in "ab"}


def test_the_joined_model_writes_and_scores_and_differs_from_its_base(folder, tuned):
    base = lmx.load(folder / "base")
    assert np.abs(tuned.logits(IDS) - base.logits(IDS)).max() > 1e-2
    merged = tuned.change.of(base.params)
    assert same(merged, tuned.params)
    plain = {"temperature": 0.0, "max_new_tokens": 4}
    few = lmx.load(folder / "tuned", quantize="int8")
    assert isinstance(few.generate("1 is", **plain), str)
    # What the run wrote at its end is what the loaded model writes.
    text = (folder / "tuned" / "samples.txt").read_text()
    again = tuned.generate("1 is", temperature=0.7, max_new_tokens=8, seed=0)
    assert f"1 is{again}".rstrip()[:6] in text


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "lora", "rank": 4},
        {"method": "dora", "rank": 2, "quantize": "int8"},
        {"train": ("norm",)},
    ],
    ids=str,
)
def test_a_run_that_stopped_goes_on_bit_for_bit(folder, tmp_path, adapter):
    config = config_for(folder, folder / "base", **adapter)
    config.steps, config.optim.ema_decay = 4, 0.5
    whole = lmx.train(config, tmp_path / "whole")
    config.steps = 2
    lmx.train(config, tmp_path / "parts")
    config.steps = 4
    parts = lmx.train(config, tmp_path / "parts")
    assert same(whole.change.params, parts.change.params)
    assert np.array_equal(whole.logits(IDS), parts.logits(IDS))


def test_a_base_that_goes_on_training_is_still_the_step_that_was_taken(
    folder, tuned, tmp_path
):
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = config_for(folder, base, method="lora", rank=4)
    before = lmx.train(config, tmp_path / "run").logits(IDS)
    more = config_for(folder)
    more.steps = 3
    lmx.train(more, base)
    assert np.array_equal(lmx.load(tmp_path / "run").logits(IDS), before)
    config.steps = 3
    assert lmx.train(config, tmp_path / "run").step == 3
    # Trained anew to the same step, it is another model.
    shutil.rmtree(base)
    more.seed, more.steps = 5, 2
    lmx.train(more, base)
    with pytest.raises(DataError, match="whose weights have changed"):
        lmx.load(tmp_path / "run")
    config.steps = 4
    with pytest.raises(DataError, match="whose weights have changed"):
        lmx.train(config, tmp_path / "run")
    shutil.rmtree(base)
    with pytest.raises(DataError, match="cannot be opened"):
        lmx.load(tmp_path / "run")
    moved = lmx.load(tmp_path / "run", base=folder / "base")
    assert moved.step == 3


def test_a_model_can_be_adapted_again(folder, tuned, tmp_path):
    config = config_for(folder, folder / "tuned", method="lora", rank=2)
    config.optim.learning_rate = 1e-9
    again = lmx.train(config, tmp_path / "again")
    np.testing.assert_allclose(again.logits(IDS), tuned.logits(IDS), atol=1e-5)


def test_an_export_is_the_joined_model_or_the_adapter_alone(
    folder, tuned, tmp_path, capsys
):
    from lmx.run.export_command import main

    workdir = f"--workdir={folder / 'tuned'}"
    assert main([workdir, str(tmp_path / "hf")]) == DONE
    whole = lmx.load(tmp_path / "hf")
    np.testing.assert_allclose(whole.logits(IDS), tuned.logits(IDS), atol=1e-5)
    assert main([workdir, "--to=peft", str(tmp_path / "peft")]) == DONE
    file = SafetensorsFile(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(file.entries) == 2 * 7 * 2
    alone = lmx.load(tmp_path / "peft")
    np.testing.assert_allclose(alone.logits(IDS), tuned.logits(IDS), atol=1e-6)
    with pytest.raises(UserError, match="no adapter to write"):
        main([f"--workdir={folder / 'base'}", "--to=peft", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("start", "adapter", "message"),
    [
        (None, {"method": "lora"}, "model.init_from names none"),
        ("nothing", {"method": "lora"}, "nothing"),
        ("base", {"method": "lora", "rank": 64}, "rank=64 is larger than"),
        ("base", {"method": "lora", "targets": ("up",), "rank": 0}, "rank=0 must be"),
        ("base", {"train": ("biases",)}, "'biases' finds no parameter"),
    ],
)
def test_what_cannot_be_adapted_is_named_before_the_first_step(
    folder, tmp_path, start, adapter, message
):
    config = config_for(folder, start and folder / start, **adapter)
    with pytest.raises(UserError, match=message):
        lmx.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
