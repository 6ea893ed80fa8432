"""A run trains on a built store of two sources, and goes on as if never stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmx.core.config import freeze
from lmx.core.errors import DataError, UserError
from lmx.data.rows import Rows
from lmx.data.seen import Seen
from lmx.data.store import TokenStore
from lmx.inputs.tokenizers import train_tokenizer
from lmx.models.decoder import Decoder, head_logits
from lmx.run.build import build
from lmx.run.evaluator import evaluator
from lmx.run.train import train
from lmx.training.checkpoints import Checkpoints
from lmx.training.metrics import read_metrics
from lmx.training.state import weights_to_use

from .conftest import mixed_config, tiny_config


def losses(workdir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(workdir / "metrics.jsonl")]


def test_a_store_trains_with_its_own_tokenizer_and_says_its_mixture(mixed_run, built):
    workdir, _, said = mixed_run
    saved, own = (
        (folder / "tokenizer" / "tokenizer.json").read_text()
        for folder in (workdir, built)
    )
    assert saved == own
    shown = "\n".join(said)
    # 8 steps: 3 of 4 rows in the first half, none in the second.
    assert "data    37.5% of the rows" in shown
    assert "inputs  62.5% of the rows" in shown


def test_validation_is_measured_whole_and_for_each_source(mixed_run, built):
    rows = list(read_metrics(mixed_run[0] / "metrics.jsonl"))
    evaluated = [row for row in rows if "eval/validation/bpb" in row]
    assert [row["step"] for row in evaluated] == [4, 8]
    assert set(mixed_run[1]["sources"]) <= {"data", "inputs"}

    experiment = build(freeze(mixed_config(built)), report=str)
    state = experiment.init()
    config = experiment.config
    evals = dataclasses.replace(config.evals, final_batches=None)
    experiment = dataclasses.replace(
        experiment, config=dataclasses.replace(config, evals=evals)
    )
    found = evaluator(experiment, final=True)(state)
    # The reference: each source's rows alone, every token by its own log-probability.
    nats, targets = {}, {}
    for source in experiment.corpus.sources:
        nats[source.name] = reference_nats(experiment, state, source.validation)
        targets[source.name] = source.validation.num_targets
        loss = nats[source.name] / targets[source.name]
        assert found[f"eval/{source.name}/loss"] == pytest.approx(loss, rel=1e-3)
        bits = nats[source.name] / math.log(2) / source.validation.source_bytes
        assert found[f"eval/{source.name}/bpb"] == pytest.approx(bits, rel=1e-3)
    whole = sum(nats.values()) / sum(targets.values())
    assert found["eval/validation/loss"] == pytest.approx(whole, rel=1e-3)
    size = sum(source.validation.source_bytes for source in experiment.corpus.sources)
    bits = sum(nats.values()) / math.log(2) / size
    assert found["eval/validation/bpb"] == pytest.approx(bits, rel=1e-3)


def reference_nats(experiment, state, store: TokenStore) -> float:
    rows = Rows({"one": store}, context_length=48, packing="concat")
    batch = rows.batch(np.arange(len(rows)))
    params = weights_to_use(state)
    hidden = Decoder(experiment.model).apply(
        {"params": params},
        batch.tokens,
        positions=batch.positions,
        segment_ids=batch.segment_ids,
    )
    logits = np.asarray(head_logits(experiment.model, params, hidden), np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
    return float(-(chosen * batch.loss_weights).sum())


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(
    mixed_run, built, tmp_path
):
    copy = Path(shutil.copytree(mixed_run[0], tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "8")
    (copy / "summary.json").unlink()
    said: list[str] = []
    train(freeze(mixed_config(built)), copy, say=said.append)
    assert "resuming from step 6" in said
    assert losses(copy) == losses(mixed_run[0])
    assert json.loads((copy / "summary.json").read_text()) == mixed_run[1]


def test_both_packings_train(built, tmp_path):
    config = mixed_config(built)
    config.data.packing = "document"
    config.steps = 2
    config.evals.every_steps = 2
    train(freeze(config), tmp_path / "run", say=str)
    assert all(map(math.isfinite, losses(tmp_path / "run")))


def test_a_config_with_another_tokenizer_is_refused(built, tmp_path):
    train_tokenizer("byte", [], 259).save(tmp_path / "mine")
    config = mixed_config(built)
    config.data.tokenizer = str(tmp_path / "mine")
    with pytest.raises(DataError, match="was built with another tokenizer") as error:
        build(freeze(config), report=str)
    assert "mine" in str(error.value)
    config.data.tokenizer = str(built / "tokenizer")
    build(freeze(config), report=str)


def test_a_damaged_store_stops_a_run_before_it_starts(built, tmp_path):
    copy = Path(shutil.copytree(built, tmp_path / "store"))
    (copy / "train" / "data" / "tokens.bin").unlink()
    with pytest.raises(DataError, match=r"train/data.*tokens\.bin") as error:
        train(freeze(mixed_config(copy)), tmp_path / "run", say=str)
    assert error.value.exit_code == 3


def seen_at(workdir: Path, step: int) -> dict:
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.facts(step)["seen"]


def test_a_checkpoint_says_what_was_seen_and_it_sums_to_the_tokens_trained(mixed_run):
    trained = 0
    for row in read_metrics(mixed_run[0] / "metrics.jsonl"):
        trained += round(row["train/tokens"])
        if row["step"] not in (6, 8):
            continue
        seen = seen_at(mixed_run[0], row["step"])
        assert seen["tokens"] == trained
        assert sum(about["tokens"] for about in seen["sources"].values()) == trained
        assert seen["licences"] == {
            about["licence"]: about["tokens"] for about in seen["sources"].values()
        }
        rows = [about["rows"] for about in seen["sources"].values()]
        assert rows == {6: [12, 12], 8: [12, 20]}[row["step"]]


def test_what_was_seen_goes_on_through_a_resumed_run(mixed_run, built, tmp_path):
    copy = Path(shutil.copytree(mixed_run[0], tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "8")
    (copy / "summary.json").unlink()
    train(freeze(mixed_config(built)), copy, say=str)
    assert seen_at(copy, 8) == seen_at(mixed_run[0], 8)


def test_a_checkpoint_without_counts_is_counted(mixed_run, built):
    corpus = build(freeze(mixed_config(built)), report=str).corpus
    seen = Seen(corpus)
    seen.resume(6, None)
    assert seen.facts == seen_at(mixed_run[0], 6)


def test_stages_that_moved_are_refused_and_stages_in_steps_are_not(
    mixed_run, built, tmp_path
):
    copy = Path(shutil.copytree(mixed_run[0], tmp_path / "run"))
    config = mixed_config(built)
    config.steps = 16
    with pytest.raises(UserError, match="change it after") as error:
        train(freeze(config), copy, say=str)
    assert "saw 12 rows of 'data'" in str(error.value)
    assert "would have seen 24" in str(error.value)
    config.steps = 9
    config.data.mixture = ("data=3 inputs=1", "4: inputs=1", "8: data=1")
    said: list[str] = []
    train(freeze(config), copy, say=said.append)
    assert "resuming from step 8" in said
    assert seen_at(copy, 9)["sources"]["data"]["rows"] == 16


def test_a_batch_without_anything_to_learn_stops_the_run(tmp_path):
    config = tiny_config()
    config.model.context_length = 1  # a row whose target is the next document's BOS
    config.data.batch_size = 1
    config.data.shuffle = "none"
    config.data.tokenizer = "byte"
    config.data.path = str(tmp_path / "text.jsonl")
    lines = [json.dumps({"text": letter}) for letter in "abcdefgh"]
    Path(config.data.path).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"^step 3: none of the 1 positions") as error:
        train(freeze(config), tmp_path / "run", say=str)
    assert error.value.exit_code == 3
