"""Training on pairs and beside other models, from the config to what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lmx.api import load
from lmx.core.config import freeze, load_experiment
from lmx.core.errors import DataError, UserError
from lmx.core.trees import flatten_with_names
from lmx.run.build import build
from lmx.run.start import adopted
from lmx.run.train import train


def quiet(text):
    del text


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_dpo_starts_at_its_reference_and_learns(adapter, pair_config, tmp_path):
    config = pair_config("dpo")
    config.adapter.method, config.adapter.rank = adapter, 2
    if adapter:  # what is trained in full has a copy of its start
        config.adapter.train = ("^embedding$",)
    config.steps = 4
    train(freeze(config), tmp_path / "run", say=quiet)
    config.steps = 8
    summary = train(freeze(config), tmp_path / "run", say=quiet)
    first, *_, last = found = rows(tmp_path / "run")
    assert first["train/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["train/margin"] == first["train/kl"] == 0
    assert last["train/margin"] > 0.05 < last["train/kl"]
    assert found[4]["train/kl"] > 0.8 * found[3]["train/kl"]  # resumed: the same start
    assert last["train/tokens"] > 3 * 4  # tokens, not pairs
    assert set(summary["validation"]) >= {"loss", "accuracy", "margin", "kl"}
    assert "bits_per_byte" not in summary["validation"]
    assert summary["validation"]["accuracy"] > 0.5
    texts = load(tmp_path / "run").generate(["ab?"], max_new_tokens=2)
    assert len(texts) == 1


def test_the_reference_of_an_adapter_is_its_base_and_no_copy(pair_config):
    config = pair_config("dpo")
    config.adapter.method, config.adapter.rank = "lora", 2
    experiment = build(adopted(freeze(config)), report=quiet)
    assert experiment.abstract_state.frozen["reference"] == {}
    state = experiment.init()
    state = jax.tree.map(lambda x: x + 1, state.params), state.frozen
    compared = experiment.parts.join(*state)
    tokens = np.arange(12)[None]
    logits = [
        experiment.objective.decoder.apply({"params": params}, tokens)
        for params in compared
    ]
    start = load(config.model.init_from)
    wanted = experiment.objective.decoder.apply({"params": start.params}, tokens)
    np.testing.assert_allclose(logits[1], wanted, atol=1e-5)
    assert np.abs(logits[0] - wanted).max() > 0.1


def test_a_reward_model_prefers_what_was_chosen(pair_config, tmp_path, base):
    config = pair_config("reward", steps=16)
    config.adapter.method, config.adapter.rank = "lora", 2
    train(freeze(config), tmp_path / "run", say=quiet)
    model = load(tmp_path / "run")
    names = [name for name, _ in flatten_with_names(model.params)]
    assert "reward_head" in names
    good, bad = model.reward([" az", " bx"], prompt="ab?")
    assert good > bad
    one = model.reward([" az"], prompt="ab?")
    assert one[0] == pytest.approx(good, abs=1e-5)
    with pytest.raises(UserError, match="gives no rewards; train one"):
        load(base).reward([" az"])
    with pytest.raises(UserError, match="give a list"):
        model.reward(" az")


def test_without_a_reference_nothing_has_to_come_first(pair_config, tmp_path):
    config = pair_config("orpo", steps=2)
    config.model.init_from = None
    summary = train(freeze(config), tmp_path / "run", say=quiet)
    assert np.isfinite(summary["validation"]["loss"])
    assert summary["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("dpo", {"model.init_from": None}, "model.init_from names none; .*'orpo'"),
        (
            "kto",
            {"model.context_length": 17},
            "single pair; raise model.context_length",
        ),
        ("dpo", {"objective.beta": 0.0}, "objective.beta=0.0 must be above 0"),
        ("dpo", {"objective.top_k": 3}, "objective.top_k=3 is not read by"),
        ("distill", {}, "needs objective.teacher"),
    ],
)
def test_what_cannot_be_learned_is_named_first(name, change, said, pair_config):
    config = pair_config(name)
    for key, value in change.items():
        section, option = key.split(".")
        config[section][option] = value
    with pytest.raises(UserError, match=said):
        build(adopted(freeze(config)), report=quiet)


def test_pairs_are_asked_for_where_there_are_none(pair_config, words):
    config = pair_config("orpo")
    config.data.path, config.data.packing = str(words), "concat"
    with pytest.raises(UserError, match=r"not groups of 2: build it of pairs"):
        build(adopted(freeze(config)), report=quiet)


def test_a_reference_that_changed_is_named(pair_config, base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    config = pair_config("dpo")
    config.model.init_from = str(copy)
    train(freeze(config), tmp_path / "run", say=quiet)
    shutil.rmtree(copy)
    shutil.copytree(tmp_path / "run", copy)
    config.steps = 10
    with pytest.raises(DataError, match=r"trained beside .*base, whose weights have"):
        train(freeze(config), tmp_path / "run", say=quiet)


RECIPES = Path(__file__).parents[2] / "experiments/finetune"


@pytest.mark.parametrize("name", ["dpo", "reward", "distill"])
def test_recipes_take_smoke_steps(name, base, pairs, words, tmp_path):
    config = load_experiment(f"{RECIPES / name}.py:smoke")
    if name == "distill":
        config.data.path, config.data.tokenizer = str(words), "byte"
        config.objective.teacher = str(base)
    else:
        config.data.path, config.model.init_from = str(pairs), str(base)
        config.adapter.rank = 2
    if name == "dpo":
        config.objective.name = "kto"  # which other tests here do not train with
    config.steps = 3
    summary = train(freeze(config), tmp_path / "run", say=quiet)
    assert summary["step"] == 3
    assert summary["skipped_steps"] == 0
