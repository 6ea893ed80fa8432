"""The loop: what it records, and that nothing it does beside the step changes it.

The step, the checkpoints and the record are the real ones; only signals and data are
stood in for.
"""

from __future__ import annotations

import io
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import DivergedError, Preempted
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import (
    CheckpointConfig,
    EvalsConfig,
    ExperimentConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
)
from lmx.inputs.batch import Batch
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve
from lmx.training.checkpoints import Checkpoints
from lmx.training.guard import init_guard
from lmx.training.loop import Parts, train
from lmx.training.metrics import MetricsWriter, read_metrics
from lmx.training.objective import NextToken
from lmx.training.optimizers import init_ema, make_optimizer
from lmx.training.progress import Progress
from lmx.training.schedules import make_schedule
from lmx.training.state import TrainState
from lmx.training.step import eval_step, train_step

STEPS, VOCAB, NEVER = 10, 16, 10**9
OPTIM = OptimConfig(warmup_steps=4, ema_decay=0.9, max_nonfinite_steps=3)
QUICKLY = {"xla_backend_optimization_level": 0}


def experiment(*, evals=NEVER, saves=NEVER, log=1, steps=STEPS):
    return ExperimentConfig(
        steps=steps,
        optim=OPTIM,
        evals=EvalsConfig(every_steps=evals),
        checkpoint=CheckpointConfig(save_every_steps=saves, keep_last=9),
        log=LogConfig(every_steps=log),
    )


def batch_at(step):
    rng, shape = np.random.default_rng(step), (2, 4)
    ids = rng.integers(0, VOCAB, (2, *shape)).astype(np.int32)
    return Batch(
        tokens=ids[0],
        targets=ids[1],
        loss_weights=(rng.random(shape) < 0.7).astype(np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.tile(np.arange(4, dtype=np.int32), (2, 1)),
    )


def poisoned_at(step):
    weights = np.full((2, 4), np.nan, np.float32)
    return batch_at(step)._replace(loss_weights=weights)


class Machine:
    """The compiled step and evaluation, and the state that a run begins with."""

    def __init__(self):
        model = resolve(
            ModelConfig(
                vocab_size=VOCAB,
                context_length=4,
                width=8,
                num_layers=1,
                num_heads=2,
                mlp_dim=8,
                compute_dtype="float32",
                layer_loop="scan",
            )
        )
        self.shapes = nn.meta.unbox(abstract_params(model))
        self.optimizer = make_optimizer(OPTIM, steps=STEPS)
        objective = NextToken(model, ObjectiveConfig())
        step = partial(
            train_step, objective=objective, optimizer=self.optimizer, config=OPTIM
        )
        self.step = jax.jit(step, donate_argnums=0, compiler_options=QUICKLY)
        self.score = jax.jit(
            partial(eval_step, objective=objective), compiler_options=QUICKLY
        )

    def initial(self):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), self.shapes
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            ema=init_ema(params),
            guard=init_guard(),
        )

    def evaluate(self, state):
        sums = self.score(state.ema, batch_at(10**6))
        return {
            "eval/validation/loss": float(sums["loss"].sum() / sums["weight"].sum())
        }


@pytest.fixture(scope="module")
def machine():
    return Machine()


class Signals:
    """Says "stop" when it is asked before step `at`."""

    def __init__(self, at):
        self.asked, self.at = -1, at

    @property
    def requested(self):
        self.asked += 1
        return self.asked == self.at


def run(machine, folder, config, *, batches=batch_at, stop_before=None, crash=None):
    """Trains in `folder` as `run/train.py` does, resuming; returns the final state."""
    opened = []

    def iterate(start, stop):
        opened.append(True)
        try:
            for step in range(start, stop):
                if step == crash:
                    raise KeyboardInterrupt
                yield batches(step)
        finally:
            opened.pop()

    with Checkpoints(
        folder / "checkpoints", config=config.checkpoint, report=lambda line: None
    ) as checkpoints:
        start = checkpoints.recover()
        state = machine.initial()
        if start is not None:
            state = checkpoints.restore(start, jax.eval_shape(machine.initial))
        with (
            MetricsWriter(folder, writers=(), start_step=start or 0) as metrics,
            Progress(config.steps, start or 0, stream=io.StringIO()) as progress,
        ):
            parts = Parts(
                step=machine.step,
                batches=iterate,
                evaluate=machine.evaluate,
                schedule=make_schedule(OPTIM, STEPS),
                checkpoints=checkpoints,
                metrics=metrics,
                progress=progress,
                preemption=Signals(
                    None if stop_before is None else stop_before - (start or 0)
                ),
                flops_per_token=lambda step: 1.0,
                peak_flops=None,
            )
            try:
                return train(state, parts, config)
            finally:
                assert not opened


def record(folder):
    return list(read_metrics(folder / "metrics.jsonl"))


def without_clock(rows):
    """Returns rows without what depends on when and how fast they were made."""
    kept = ("train/", "eval/", "step")
    return [{k: v for k, v in row.items() if k.startswith(kept)} for row in rows]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def plain(machine, tmp_path_factory):
    """A run with an evaluation every 4 steps and a checkpoint every 3."""
    folder = tmp_path_factory.mktemp("plain")
    state = run(machine, folder, experiment(evals=4, saves=3))
    return SimpleNamespace(folder=folder, state=jax.device_get(state))


def test_metrics_that_come_a_step_late_are_those_of_their_step(machine, plain):
    state, schedule = machine.initial(), make_schedule(OPTIM, STEPS)
    rows = record(plain.folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for step, row in enumerate(rows):
        state, metrics = machine.step(state, batch_at(step))
        for name in ("loss", "grad_norm", "tokens", "skipped"):
            assert row[f"train/{name}"] == float(metrics[name]), (step, name)
        assert row["train/lr"] == float(schedule(step))
        assert row["perf/step_time"] > 0
        assert 0 <= row["perf/data_wait"] <= 1
        if step + 1 in (4, 8, STEPS):
            loss = machine.evaluate(state)["eval/validation/loss"]
            assert row["eval/validation/loss"] == loss
        else:
            assert "eval/validation/loss" not in row
    assert_same(state, plain.state)


def test_the_rate_follows_accepted_steps_as_the_optimizer_does(machine, tmp_path):
    bad = 3
    run(
        machine,
        tmp_path,
        experiment(),
        batches=lambda step: (poisoned_at if step == bad else batch_at)(step),
    )
    rates = {row["step"]: row["train/lr"] for row in record(tmp_path)}
    schedule = make_schedule(OPTIM, STEPS)
    for step in set(range(STEPS)) - {bad}:
        accepted = step - (step > bad)
        assert rates[step + 1] == float(schedule(accepted))


def test_evaluating_and_saving_change_no_bit_of_training(machine, plain, tmp_path):
    state = run(machine, tmp_path, experiment())
    assert_same(state, plain.state)
    assert len(record(tmp_path)) == STEPS


def test_checkpoints_are_written_on_schedule_and_at_the_end(machine, plain):
    with Checkpoints(plain.folder / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3, 6, 9, STEPS]
        for step in (3, STEPS):
            saved = checkpoints.restore(step, jax.eval_shape(machine.initial))
            assert saved.step == step
        assert_same(saved, plain.state)


def test_records_are_written_on_schedule_at_evaluations_and_at_the_end(
    machine, tmp_path
):
    run(machine, tmp_path, experiment(log=3, evals=4))
    assert [row["step"] for row in record(tmp_path)] == [3, 4, 6, 8, 9, STEPS]


@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_a_run_that_was_asked_to_stop_ends_bit_for_bit_the_same(
    machine, plain, tmp_path, at
):
    config = experiment(evals=4, saves=3)
    with pytest.raises(Preempted, match=f"step {at} of {STEPS}") as error:
        run(machine, tmp_path, config, stop_before=at)
    assert error.value.exit_code == 75
    assert [row["step"] for row in record(tmp_path)] == list(range(1, at + 1))
    assert_same(run(machine, tmp_path, config), plain.state)
    rows = without_clock(record(tmp_path))
    assert rows == without_clock(record(plain.folder))


@pytest.mark.parametrize("at", [2, 4, 6, 7])
def test_a_run_that_broke_off_leaves_no_gap_and_no_duplicate(
    machine, plain, tmp_path, at
):
    config = experiment(evals=4, saves=3)
    with pytest.raises(KeyboardInterrupt):
        run(machine, tmp_path, config, crash=at)
    assert_same(run(machine, tmp_path, config), plain.state)
    rows = without_clock(record(tmp_path))
    assert rows == without_clock(record(plain.folder))


def bad_from(first, count):
    def batches(step):
        bad = first <= step < first + count
        return (poisoned_at if bad else batch_at)(step)

    return batches


def test_bad_steps_are_skipped_and_training_goes_on(machine, tmp_path):
    limit = OPTIM.max_nonfinite_steps
    state = run(machine, tmp_path, experiment(), batches=bad_from(2, limit - 1))
    assert state.step == STEPS
    rows = record(tmp_path)
    assert [row["train/skipped"] for row in rows] == [0, 0, 1] + [2] * (STEPS - 3)
    assert [np.isfinite(row["train/loss"]) for row in rows] == [
        step not in (3, 4) for step in range(1, STEPS + 1)
    ]


# In the middle; at a step that also saves and evaluates; and at the last one.
@pytest.mark.parametrize(("first", "extra"), [(2, 1), (2, 3), (3, 1), (STEPS - 3, 0)])
def test_too_many_bad_steps_end_the_run_with_finite_weights_saved(
    machine, tmp_path, first, extra
):
    count = OPTIM.max_nonfinite_steps + extra
    config = experiment(evals=3, saves=3)
    with pytest.raises(DivergedError, match="3 steps in a row") as error:
        run(machine, tmp_path, config, batches=bad_from(first, count))
    assert error.value.exit_code == 4
    expected = run(machine, tmp_path / "good", experiment(steps=first))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
        assert latest >= first + OPTIM.max_nonfinite_steps
        saved = checkpoints.restore(latest, jax.eval_shape(machine.initial))
    assert saved.step == latest
    if extra:  # otherwise a good step may have followed before the news came
        for name in ("params", "opt_state", "ema"):
            assert_same(getattr(saved, name), getattr(expected, name))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved))
    rows = record(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, latest + 1))
    assert rows[-1]["train/skipped"] >= OPTIM.max_nonfinite_steps


def test_a_run_that_is_stopped_while_it_diverges_is_saved_too(machine, tmp_path):
    count = OPTIM.max_nonfinite_steps
    with pytest.raises(DivergedError):
        run(
            machine,
            tmp_path,
            experiment(),
            batches=bad_from(1, count),
            stop_before=1 + count,
        )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 1 + count


def test_after_a_divergence_the_same_command_goes_on_where_it_was(machine, tmp_path):
    with pytest.raises(DivergedError):
        run(machine, tmp_path, experiment(), batches=bad_from(2, 4))
    state = run(machine, tmp_path, experiment())
    assert state.step == STEPS
    assert int(state.guard.skipped) == 4
    assert [row["step"] for row in record(tmp_path)] == list(range(1, STEPS + 1))


def test_a_finished_run_takes_no_step_and_keeps_its_record(machine, plain):
    before = record(plain.folder)
    state = run(machine, plain.folder, experiment(evals=4, saves=3))
    assert_same(state, plain.state)
    assert record(plain.folder) == before
