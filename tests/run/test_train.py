"""A run leaves what it promises, goes on where it stopped, and refuses what it must."""

import dataclasses
import json
import math

import numpy as np
import pytest

import lmx
from lmx.core.config import freeze, from_json
from lmx.core.errors import DATA, USAGE, DataError, UserError
from lmx.run.train import default_workdir, read_summary, train
from lmx.training.checkpoints import Checkpoints, state_digest
from lmx.training.metrics import read_metrics

from .conftest import tiny_config


def digest(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return state_digest(checkpoints.restore_params(checkpoints.latest()))


def test_a_run_writes_everything_it_names(finished):
    workdir, summary, said = finished
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "checkpoints",
        "config.json",
        "loss.png",
        "metrics.jsonl",
        "samples.txt",
        "summary.json",
        "tensorboard",
        "tokenizer",
    }
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert "def " in (workdir / "samples.txt").read_text()
    assert any("gzip -9" in text and "ast.parse" in text for text in said)


def test_the_record_has_each_step_once_with_its_evaluation(finished):
    rows = list(read_metrics(finished[0] / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 9))
    evaluated = [r["step"] for r in rows if "eval/validation/bpb" in r]
    assert evaluated == [4, 8]
    first = rows[0]
    assert abs(first["train/loss"] - math.log(300)) < 0.3
    assert first["train/tokens"] <= 4 * 48
    assert {"train/grad_norm", "train/lr", "perf/tokens_per_sec"} <= set(first)


def test_config_json_holds_the_derived_numbers(finished):
    model = from_json((finished[0] / "config.json").read_text()).model
    assert (model.vocab_size, model.head_dim, model.num_kv_heads) == (300, 16, 2)


def test_a_finished_run_says_so_and_changes_nothing(run_copy, monkeypatch):
    import lmx.run.build

    def build(*args, **kwargs):
        raise AssertionError("a finished run was built again")

    monkeypatch.setattr(lmx.run.build, "build", build)
    before, said = digest(run_copy), []
    summary = train(freeze(tiny_config()), run_copy, say=said.append)
    assert summary["step"] == 8
    assert "finished at step 8" in said[-1]
    assert "--config.steps=16" in said[-1]
    assert digest(run_copy) == before


def test_a_longer_run_goes_on_from_the_last_checkpoint(run_copy):
    config, said = tiny_config(), []
    config.steps = 10
    train(freeze(config), run_copy, say=said.append)
    assert "resuming from step 8" in said
    assert any("steps: 8 → 10" in line for line in said)
    rows = [row["step"] for row in read_metrics(run_copy / "metrics.jsonl")]
    assert rows == list(range(1, 11))
    assert read_summary(run_copy)["step"] == 10


def test_a_run_that_lost_its_end_finishes_the_same(run_copy, finished):
    import shutil

    shutil.rmtree(run_copy / "checkpoints" / "8")
    (run_copy / "summary.json").unlink()
    train(freeze(tiny_config()), run_copy, say=lambda text: None)
    assert digest(run_copy) == digest(finished[0])
    assert read_summary(run_copy) == finished[1]


def test_another_experiment_in_the_same_workdir_is_refused(run_copy):
    config = tiny_config()
    config.model.num_layers = 3
    before = digest(run_copy)
    with pytest.raises(UserError, match=r"model.num_layers: 2 → 3") as error:
        train(freeze(config), run_copy, say=lambda text: None)
    assert error.value.exit_code == USAGE
    assert digest(run_copy) == before


def test_a_checkpoint_of_other_text_is_refused(run_copy, monkeypatch):
    import lmx.run.build as build

    real = build.prepare

    def prepare(config, **kwargs):
        return real(dataclasses.replace(config, max_documents=9), **kwargs)

    monkeypatch.setattr(build, "prepare", prepare)
    config = tiny_config()
    config.steps = 9
    with pytest.raises(DataError, match="was trained with other text") as error:
        train(freeze(config), run_copy, say=lambda text: None)
    assert error.value.exit_code == DATA


def test_a_tokenizer_that_trains_differently_gives_way_to_the_runs_own(
    run_copy, monkeypatch
):
    import lmx.run.build as build

    real = build.prepare

    def prepare(config, **kwargs):
        if config.tokenizer == "bpe":
            config = dataclasses.replace(config, vocab_size=290)
        return real(config, **kwargs)

    monkeypatch.setattr(build, "prepare", prepare)
    before = (run_copy / "config.json").read_text()
    config = tiny_config()
    config.steps = 9
    train(freeze(config), run_copy, say=lambda text: None)
    assert read_summary(run_copy)["step"] == 9
    after = (run_copy / "config.json").read_text()
    assert after == before.replace('"steps": 8', '"steps": 9')


def test_a_damaged_config_json_is_named(run_copy):
    (run_copy / "config.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        train(freeze(tiny_config()), run_copy, say=lambda text: None)


def test_an_impossible_model_is_refused_before_any_data_is_read(tmp_path):
    config = tiny_config()
    config.model.num_heads = 5
    config.data.path = "/nonexistent"
    with pytest.raises(UserError, match=r"does not divide model\.width=32"):
        train(freeze(config), tmp_path / "run", say=lambda text: None)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path):
    config = tiny_config()
    config.model.vocab_size = 100
    with pytest.raises(DataError, match=r"model.vocab_size=100 is smaller"):
        train(freeze(config), tmp_path / "run", say=lambda text: None)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, finished):
    config = tiny_config()
    train(freeze(config), tmp_path / "same", say=lambda text: None)
    assert digest(tmp_path / "same") == digest(finished[0])
    config.seed = 1
    train(freeze(config), tmp_path / "other", say=lambda text: None)
    assert digest(tmp_path / "other") != digest(finished[0])


def test_default_workdirs_tell_variants_apart():
    names = [
        default_workdir(f"experiments/quickstart.py{arg}").as_posix()
        for arg in ("", ":smoke", ":size=10m,smoke")
    ]
    assert names == [
        "runs/quickstart",
        "runs/quickstart-smoke",
        "runs/quickstart-size-10m-smoke",
    ]


def test_a_second_compilation_of_the_step_is_reported():
    import jax

    from lmx.run.train import CompileWatch

    said = []
    watch = CompileWatch(say=said.append)
    step = watch.counted(jax.jit(lambda x: x * 2 + 1))
    with watch:
        for _ in range(4):
            step(np.ones(3))
        assert said == []
        step(np.ones(5))
    assert "compiled again after 4 steps" in said[0]


EXPERIMENTS = ["experts", "quickstart"]
OF_EXAMPLES = ["denoise"]  # they take their steps in test_examples_run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_builds_and_takes_smoke_steps(name, tmp_path):
    from lmx.core.config import load_experiment

    from .conftest import ROOT

    found = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
    assert found == sorted(EXPERIMENTS + OF_EXAMPLES)
    config = load_experiment(f"{ROOT}/experiments/{name}.py:smoke")
    config.data.path = str(ROOT / "lmx")
    summary = train(freeze(config), tmp_path / name, say=lambda text: None)
    assert summary["step"] == config.steps
    assert summary["functions"]["sampled"] > 0
    assert lmx.load(tmp_path / name).step == config.steps
