"""The training step: reductions, refusal of bad gradients, learning, both compilers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig, OptimConfig
from lmx.core.trees import flatten_with_names
from lmx.inputs.batch import Batch
from lmx.models.decoder import Decoder, abstract_params, head_logits
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.optimizers import OPTIMIZERS, make_optimizer
from lmx.training.state import TrainState, init_guard, init_state, weights_to_use
from lmx.training.step import eval_step, train_step

ROWS, LENGTH = 8, 6
TEXT = "to be or not to be, that is the question"
VOCAB = sorted(set(TEXT))
QUICKLY = {"xla_backend_optimization_level": 0}  # for programs that run a few times
SHAPE = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
MODEL = resolve(
    ModelConfig(
        vocab_size=len(VOCAB),
        context_length=len(TEXT) - 1,
        compute_dtype="float32",
        layer_loop="scan",
        **SHAPE,
    )
)
ADAM = OptimConfig(
    learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=None
)


class Poisonable:
    """The objective, whose loss of rows that begin with −1 is the NaN of a bad sum."""

    def __init__(self, objective):
        self.objective = objective

    def __call__(self, params, batch):
        bad = batch.tokens[:, :1] < 0
        losses = self.objective(params, batch._replace(tokens=abs(batch.tokens)))
        some = jax.tree.leaves(params)[0].sum()
        # The loss stays finite; only its derivative, 0 · ∞, is not a number.
        poison = jnp.sqrt(jnp.where(bad, 0.0 * some, 1.0)) - jnp.where(bad, 0.0, 1.0)
        return losses._replace(values=losses.values + poison)


OBJECTIVE = Poisonable(NextToken(MODEL, ObjectiveConfig(z_loss=1e-4)))


@cache
def compiled_step(config, pieces=1):
    """Returns the compiled step; the config's optimizer, the batch in `pieces`."""
    config = dataclasses.replace(config, accumulate_steps=pieces)
    step = partial(
        train_step,
        objective=OBJECTIVE,
        optimizer=make_optimizer(config, steps=100),
        config=config,
    )
    return jax.jit(step, compiler_options=QUICKLY)


@cache
def initial_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)),
        jax.tree.map(lambda box: box.unbox(), abstract_params(MODEL), is_leaf=is_box),
    )


def is_box(x):
    return hasattr(x, "unbox")


def initial(config, ema=False):
    params = initial_params()
    optimizer = make_optimizer(config, steps=100)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=params if ema else None,
        guard=init_guard(),
    )


def random_batch(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    shape = (rows, LENGTH)
    # Rows of very unequal weight: what averages of averages would get wrong.
    weights = rng.random(shape) < np.linspace(0.1, 1, rows)[:, None]
    weights[0] = 0
    return Batch(
        tokens=rng.integers(0, len(VOCAB), shape).astype(np.int32),
        targets=rng.integers(0, len(VOCAB), shape).astype(np.int32),
        loss_weights=weights.astype(np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)),
    )


def poisoned(batch):
    tokens = batch.tokens.copy()
    tokens[3, 0] = -tokens[3, 0] - 1
    return batch._replace(tokens=tokens)


def assert_near(a, b, rtol=1e-5):
    for (name, x), (_, y) in zip(
        flatten_with_names(a), flatten_with_names(b), strict=True
    ):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error = np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-6)
        assert error <= rtol, (name, error)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def update(after, before):
    return jax.tree.map(jnp.subtract, after.params, before.params)


def first_moment(state):
    """Returns Adam's after one step: (1 − β₁) · gradient, which its update hides."""
    return {
        name: leaf
        for name, leaf in flatten_with_names(state.opt_state)
        if "/mu/" in name
    }


@pytest.fixture(scope="module")
def whole():
    """The state before and after one step on the whole batch, and its metrics."""
    before = initial(ADAM)
    return before, *compiled_step(ADAM)(before, random_batch())


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulation_gives_the_same_loss_and_update(whole, pieces):
    before, after, metrics = whole
    found, found_metrics = compiled_step(ADAM, pieces)(before, random_batch())
    assert_near(first_moment(found), first_moment(after))
    assert_near(found_metrics, metrics)
    # Adam's first update is the gradient's sign: compare where the gradient is not 0.
    pairs = zip(
        jax.tree.leaves(update(found, before)),
        jax.tree.leaves(update(after, before)),
        jax.tree.leaves(first_moment(after)),
        strict=True,
    )
    for a, b, moment in pairs:
        real = np.abs(moment) > 1e-5
        np.testing.assert_allclose(a[real], b[real], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_all_weights_of_the_batch(whole):
    before, _, metrics = whole
    batch = random_batch()
    losses = NextToken(MODEL, ObjectiveConfig())(before.params, batch)
    values = np.asarray(losses.values, np.float64)
    mean = (values * batch.loss_weights).sum() / batch.loss_weights.sum()
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)
    assert metrics["tokens"] == batch.loss_weights.sum()


def test_rows_without_weight_change_nothing(whole):
    before, after, metrics = whole
    batch = random_batch()
    assert not batch.loss_weights[0].any()
    tokens, targets = batch.tokens.copy(), batch.targets.copy()
    tokens[0], targets[0] = tokens[0][::-1], targets[1]
    changed = batch._replace(tokens=tokens, targets=targets)
    found, found_metrics = compiled_step(ADAM)(before, changed)
    assert_same(found, after)
    assert_same(found_metrics, metrics)


@pytest.mark.parametrize("scale", [4.0, 0.25, 1 / 1024])
def test_weights_are_relative(whole, scale):
    before, after, metrics = whole
    batch = random_batch()
    batch = batch._replace(loss_weights=np.float32(scale) * batch.loss_weights)
    found, found_metrics = compiled_step(ADAM)(before, batch)
    assert_near(first_moment(found), first_moment(after))
    np.testing.assert_allclose(found_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(found_metrics["tokens"], scale * metrics["tokens"])


def test_a_batch_without_any_weight_gives_zero_gradients_and_no_nan(whole):
    before = whole[0]
    batch = random_batch()
    batch = batch._replace(loss_weights=np.zeros_like(batch.loss_weights))
    _, metrics = compiled_step(ADAM)(before, batch)
    assert (metrics["loss"], metrics["grad_norm"], metrics["tokens"]) == (0, 0, 0)


GUARDED = dataclasses.replace(ADAM, ema_decay=0.9, max_nonfinite_steps=3)


def test_a_nan_gradient_changes_no_bit_is_counted_and_training_goes_on():
    step = compiled_step(GUARDED)
    state, _ = step(initial(GUARDED, ema=True), random_batch(1))
    refused, metrics = step(state, poisoned(random_batch(2)))
    assert np.isfinite(metrics["loss"])
    assert np.isnan(metrics["grad_norm"])
    assert (metrics["skipped"], metrics["consecutive_nonfinite"]) == (1, 1)
    assert refused.step == state.step + 1
    for name in ("params", "opt_state", "ema"):
        assert_same(getattr(refused, name), getattr(state, name))
    after, metrics = step(refused, random_batch(3))
    assert (metrics["skipped"], metrics["consecutive_nonfinite"]) == (1, 0)
    direct, _ = step(state, random_batch(3))
    assert_same(after.params, direct.params)
    assert_same(after.opt_state, direct.opt_state)


def test_nan_gradients_in_a_row_are_counted_and_never_reach_the_weights():
    step = compiled_step(GUARDED)
    state = start = initial(GUARDED, ema=True)
    for count in range(1, GUARDED.max_nonfinite_steps + 2):
        state, metrics = step(state, poisoned(random_batch(count)))
        assert metrics["consecutive_nonfinite"] == count
    for name in ("params", "opt_state", "ema"):
        assert_same(getattr(state, name), getattr(start, name))


def test_the_global_norm_is_clipped_and_the_norm_before_it_reported(whole):
    before, after, metrics = whole
    norm = float(metrics["grad_norm"])
    gradient = jax.tree.map(lambda m: m / (1 - ADAM.beta1), first_moment(after))
    np.testing.assert_allclose(optax.tree.norm(gradient), norm, rtol=1e-5)
    config = dataclasses.replace(ADAM, clip_norm=norm / 4)
    clipped, clipped_metrics = compiled_step(config)(before, random_batch())
    np.testing.assert_allclose(clipped_metrics["grad_norm"], norm, rtol=1e-6)
    quarter = jax.tree.map(lambda m: m / 4, first_moment(after))
    assert_near(first_moment(clipped), quarter)


def test_the_average_of_the_weights_follows_the_weights():
    step = compiled_step(GUARDED)
    state = initial(GUARDED, ema=True)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    for number in range(1, 4):
        state, _ = step(state, random_batch(number))
        keep = min(GUARDED.ema_decay, number / (number + 10))
        expected = jax.tree.map(
            lambda e, p, keep=keep: keep * e + (1 - keep) * np.asarray(p),
            expected,
            state.params,
        )
    assert_near(state.ema, expected, rtol=1e-6)
    assert weights_to_use(state) is state.ema
    assert weights_to_use(initial(ADAM)) is not None


def sentence():
    """Returns the sentence as one row of tokens and targets."""
    ids = np.array([[VOCAB.index(letter) for letter in TEXT]], np.int32)
    shape = (1, len(TEXT) - 1)
    return Batch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        loss_weights=np.ones(shape, np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.arange(shape[1], dtype=np.int32)[None],
    )


def test_a_tiny_model_memorises_a_sentence_and_says_it():
    config = dataclasses.replace(ADAM, learning_rate=0.02, weight_decay=0.0)
    step, state, batch = compiled_step(config), initial(config), sentence()
    for _ in range(200):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.05

    @jax.jit
    def next_token(params, tokens, place):
        hidden = Decoder(MODEL).apply({"params": params}, tokens)
        return head_logits(MODEL, params, hidden)[0, place].argmax()

    said = np.zeros_like(batch.tokens)
    said[0, 0] = batch.tokens[0, 0]
    for place in range(said.shape[1] - 1):
        said[0, place + 1] = next_token(state.params, said, place)
    assert "".join(VOCAB[i] for i in said[0]) == TEXT[:-1]


OPTIMIZED = {
    name: {"name": name, "learning_rate": rate, "clip_norm": 1.0}
    for name in OPTIMIZERS
    for rate in [{"lion": 0.003, "sophia": 0.01}.get(name, 0.02)]
}


# Sophia differentiates the accumulated gradient once more.
@pytest.mark.parametrize(
    ("name", "pieces"), [*((n, 1) for n in OPTIMIZERS), ("sophia", 2)]
)
def test_every_optimizer_lowers_the_loss_in_the_real_step(name, pieces):
    config = dataclasses.replace(ADAM, **OPTIMIZED[name])
    step, batch = compiled_step(config, pieces), random_batch(5)
    state = initial(config, ema=name == "schedule_free_adamw")
    losses = []
    for _ in range(25):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        assert metrics["skipped"] == 0
    assert losses[-1] < 0.9 * losses[0], losses
    if name == "schedule_free_adamw":
        sums = jax.jit(partial(eval_step, objective=OBJECTIVE))(
            weights_to_use(state), batch
        )
        assert sums["loss"].sum() / sums["weight"].sum() < 0.95 * losses[0]


def test_sophia_takes_a_step_through_unrolled_layers():
    model = dataclasses.replace(MODEL, num_layers=2, layer_loop="unroll", kernels="cpu")
    config = dataclasses.replace(ADAM, **OPTIMIZED["sophia"])
    optimizer = make_optimizer(config, steps=100)
    objective = NextToken(model, ObjectiveConfig())
    state = init_state(jax.random.key(0), Decoder(model), optimizer, config)
    step = partial(train_step, objective=objective, optimizer=optimizer, config=config)
    _, metrics = jax.jit(step, compiler_options=QUICKLY)(state, random_batch(5))
    assert np.isfinite(metrics["loss"])
    assert metrics["skipped"] == 0


def test_sophia_in_micro_batches_is_sophia_on_the_whole_batch():
    config = dataclasses.replace(ADAM, **OPTIMIZED["sophia"])
    states = [initial(config), initial(config)]
    for number in range(2):
        for i, pieces in enumerate((1, 2)):
            states[i], _ = compiled_step(config, pieces)(
                states[i], random_batch(number)
            )
    assert_near(states[1].opt_state, states[0].opt_state, rtol=1e-4)


def test_the_first_state_has_an_average_exactly_where_it_is_used():
    for config, kept in (
        (ADAM, False),
        (GUARDED, True),
        (dataclasses.replace(ADAM, name="schedule_free_adamw"), True),
    ):
        optimizer = make_optimizer(config, steps=10)
        make = partial(
            init_state, decoder=Decoder(MODEL), optimizer=optimizer, config=config
        )
        state = jax.eval_shape(make, jax.random.key(0))
        assert (state.ema is not None) == kept
        assert jax.tree.structure(state.params) == jax.tree.structure(initial_params())


def pmap_against_jit():
    """Runs in a process with 4 devices; prints the largest difference of two steps."""
    from lmx.core.schema import ParallelConfig
    from lmx.parallel.mesh import make_mesh
    from lmx.parallel.partition import Partition
    from lmx.parallel.rules import DEFAULT
    from lmx.run.build import _pmapped

    partition = Partition(make_mesh(ParallelConfig()), DEFAULT)
    errors = {"devices": jax.device_count()}
    # Sophia's second derivative goes through the sum over devices as well.
    config = dataclasses.replace(ADAM, **OPTIMIZED["sophia"], accumulate_steps=2)
    step = partial(
        train_step,
        objective=OBJECTIVE,
        optimizer=make_optimizer(config, steps=100),
        config=config,
    )
    by_jit = partition.jit(step, out=partition.replicated)
    by_pmap = _pmapped(step)
    states = [jax.device_put(initial(config), partition.replicated)] * 2
    for number in range(2):
        batch = partition.place_batch(random_batch(number))
        results = by_jit(states[0], batch), by_pmap(states[1], batch)
        states = [result[0] for result in results]
        measured = [
            (first_moment(state), state.params, metrics["loss"], metrics["tokens"])
            for state, metrics in results
        ]
        assert len(measured[0][0]) == len(jax.tree.leaves(states[0].params))
        errors[f"step {number}"] = max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max())
            for a, b in zip(*map(jax.tree.leaves, measured), strict=True)
        )
    bad = partition.place_batch(poisoned(random_batch(9)))
    errors["skipped"] = int(by_pmap(states[1], bad)[1]["skipped"])
    print(json.dumps(errors))


def test_the_step_by_pmap_is_the_step_by_jit_on_4_devices():
    flags = (
        "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    )
    result = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout.splitlines()[-1])
    assert errors.pop("devices") == 4
    assert errors.pop("skipped") == 1
    assert max(errors.values()) <= 1e-6, errors


if __name__ == "__main__":
    pmap_against_jit()
