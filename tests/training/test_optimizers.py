from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names, mirror
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve
from lmx.training.optimizers import (
    OPTIMIZERS,
    clip_by_norm,
    eval_params,
    hutchinson_diagonal,
    init_ema,
    make_optimizer,
    matrix_axes,
    update_ema,
)

from .optimizer_cases import (
    DECAY,
    DECAYED,
    RATE,
    STEPS,
    assert_close,
    grad_fn,
    make_config,
    make_tree,
    train,
)

# --- what every optimizer must hold -----------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_what_is_not_exempt_and_touches_nothing_else(name):
    params = make_tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(make_config(name), steps=STEPS)
    moved = train(
        optimizer, params, steps=1, gradients=[zeros], grad_fn=lambda params: zeros
    )
    # Schedule-free works its average out of two others, and rounds.
    exempt = 1e-6 if name == "schedule_free_adamw" else 0.0
    before, decayed = dict(flatten_with_names(params)), jax.tree.leaves(DECAYED)
    assert 0 < sum(decayed) < len(decayed)
    for (leaf, after), shrinks in zip(flatten_with_names(moved), decayed, strict=True):
        if shrinks:
            expected = before[leaf] * (1 - RATE * DECAY)
            np.testing.assert_allclose(after, expected, rtol=1e-6, err_msg=leaf)
        else:
            np.testing.assert_allclose(after, before[leaf], rtol=exempt, err_msg=leaf)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_few_steps_lower_the_loss_of_a_logistic_problem(name):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(64, 6)), jnp.float32)
    y = jnp.asarray(random.normal(size=(6, 4)), jnp.float32)
    labels = jnp.argmax(x @ y, axis=-1)
    params = {
        "blocks": {"mlp": {"kernel": jnp.zeros((1, 6, 4))}},
        "head": {"bias": jnp.zeros(4)},
    }

    def loss(params):
        logits = x @ params["blocks"]["mlp"]["kernel"][0] + params["head"]["bias"]
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return rows.mean()

    config = make_config(name, learning_rate=0.05, weight_decay=0.0)
    optimizer = make_optimizer(config, steps=40)
    state = optimizer.init(params)
    before = loss(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            jax.grad(loss)(params), state, params, grad_fn=jax.grad(loss)
        )
        return optax.apply_updates(params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    assert loss(eval_params(config, state, params)) < 0.6 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_float32_and_each_leaf_mirrors_a_parameter_or_is_small(name):
    params = make_tree(0, jnp.bfloat16)
    optimizer = make_optimizer(make_config(name), steps=STEPS)
    state = jax.eval_shape(optimizer.init, params)
    largest_factor = 0
    for (leaf, x), parameter in zip(
        flatten_with_names(state), jax.tree.leaves(mirror(state, params)), strict=True
    ):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        assert x.dtype == jnp.float32 or not floating, leaf
        if not parameter:
            largest_factor = max(largest_factor, x.size)
    assert largest_factor <= 3
    updates, after = jax.eval_shape(
        lambda g, s, p: optimizer.update(g, s, p, grad_fn=grad_fn),
        params,
        state,
        params,
    )
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_buffers_of_parameters_and_state_can_be_donated(name):
    params = jax.jit(lambda: make_tree(0))()
    optimizer = make_optimizer(make_config(name), steps=STEPS)
    state = optimizer.init(params)

    def step(params, state):
        grads = grad_fn(params)
        updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))


# --- what only one of them must hold ----------------------------------------------


def test_the_matrices_of_a_real_decoder_are_the_kernels_of_its_blocks():
    config = ModelConfig(
        width=16,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        pattern=("attention", "window"),
        window=8,
        biases="all",
        positions="learned",
        qk_norm="rmsnorm",
        head="untied",
        context_length=16,
    )
    params = nn.meta.unbox(abstract_params(resolve(config, vocab_size=32)))
    sides = {}
    for name, x in flatten_with_names(params):
        axes = matrix_axes(name, x.ndim)
        assert (axes is not None) == name.endswith("kernel"), name
        if axes is not None:
            fan_in = math.prod(x.shape[i] for i in axes.reduction_axis)
            fan_out = math.prod(x.shape[i] for i in axes.output_axis)
            assert x.shape[0] * fan_in * fan_out == x.size, name
            sides.setdefault("/".join(name.split("/")[2:-1]), (fan_in, fan_out))
            assert sides["/".join(name.split("/")[2:-1])] == (fan_in, fan_out)
    assert {name: side for name, side in sides.items() if "mlp" not in name} == {
        "attention/query": (16, 16),
        "attention/key": (16, 8),
        "attention/value": (16, 8),
        "attention/out": (16, 16),
    }
    assert any(name.startswith("tail/") for name, _ in flatten_with_names(params))


def test_muon_without_a_matrix_is_an_error_and_not_adamw_in_disguise():
    with pytest.raises(UserError, match="no parameter is a matrix"):
        make_optimizer(make_config("muon"), steps=1).init({"embedding": jnp.ones(3)})


def coupled(params):
    """A quadratic whose Hessian has entries off its diagonal."""
    x = params["x"]
    return 0.5 * x @ jnp.asarray([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0, 0.3, 4.0]]) @ x


def test_hutchinsons_estimate_is_right_on_average():
    estimator = hutchinson_diagonal()
    params = {"x": jnp.asarray([1.0, -2.0, 0.5])}

    def draw(state, _):
        diagonal, state = estimator.update(
            None, state, params, grad_fn=jax.grad(coupled)
        )
        return state, diagonal["x"]

    _, draws = jax.lax.scan(draw, estimator.init(params), None, length=2000)
    assert draws.std(axis=0).max() > 0.1
    np.testing.assert_allclose(draws.mean(axis=0), [2.0, 1.0, 4.0], atol=0.06)


def test_hutchinson_passes_through_custom_gradients_scan_and_remat():
    @jax.custom_vjp
    def cosh(x):
        return jnp.cosh(x)

    cosh.defvjp(lambda x: (jnp.cosh(x), x), lambda x, g: (g * jnp.sinh(x),))

    def loss(params):
        body = jax.checkpoint(lambda total, row: (total + cosh(row).sum(), None))
        return jax.lax.scan(body, 0.0, params["x"])[0]

    params = {"x": jnp.linspace(-1, 1, 6).reshape(3, 2)}
    estimator = hutchinson_diagonal()
    diagonal, _ = jax.jit(
        lambda params: estimator.update(
            None, estimator.init(params), params, grad_fn=jax.grad(loss)
        )
    )(params)
    assert_close(diagonal, jax.tree.map(jnp.cosh, params))


def test_hutchinson_of_gradients_averaged_over_devices_is_that_of_their_mean():
    shards = jnp.asarray([1.0, 3.0])
    params = {"x": jnp.asarray([0.3, -0.2])}
    estimator = hutchinson_diagonal()

    def on_device(shard):
        def grads(params):
            local = jax.tree.map(lambda x: shard * jnp.sinh(x), params)
            return jax.lax.pmean(local, "data")

        state = estimator.init(params)
        return estimator.update(None, state, params, grad_fn=grads)[0]

    each = jax.vmap(on_device, axis_name="data")(shards)["x"]
    np.testing.assert_allclose(each[0], 2.0 * jnp.cosh(params["x"]), rtol=1e-6)
    np.testing.assert_array_equal(each[0], each[1])


def test_sophia_asks_for_the_hessian_every_tenth_step_only():
    params = {"x": jnp.ones(3)}
    optimizer = make_optimizer(make_config("sophia"), steps=30)
    state = optimizer.init(params)
    update = jax.jit(
        lambda s: optimizer.update(params, s, params, grad_fn=jax.grad(coupled))[1]
    )
    fresh = []
    for step in range(21):
        after = update(state)
        if not np.array_equal(after[0].nu["x"], state[0].nu["x"]):
            fresh.append(step)
        state = after
    assert fresh == [0, 10, 20]


def test_sophia_says_what_the_step_must_pass():
    params = {"x": jnp.ones(3)}
    optimizer = make_optimizer(make_config("sophia"), steps=1)
    with pytest.raises(TypeError, match="grad_fn"):
        optimizer.update(params, optimizer.init(params), params)


def test_schedule_free_evaluates_the_average_and_trains_beside_it():
    config = make_config("schedule_free_adamw", weight_decay=0.0)
    optimizer = make_optimizer(config, steps=9)
    params = make_tree(0)
    state = optimizer.init(params)
    inner = [params]
    for seed in (1, 2, 3):
        updates, state = optimizer.update(make_tree(seed), state, params)
        params = optax.apply_updates(params, updates)
        inner.append(state.z)
    # At a constant rate x is the plain mean of the points z that followed the start.
    mean = jax.tree.map(lambda *z: sum(z) / 3, *inner[1:])
    assert_close(eval_params(config, state, params), mean, rtol=1e-4, atol=1e-5)
    other = make_config("adamw")
    assert eval_params(other, state, params) is params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "set optim.schedule to 'constant'"),
        ({"beta1": 0.0}, "optim.beta1 is 0.0"),
    ],
)
def test_schedule_free_refuses_what_it_would_ignore_or_divide_by(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(make_config("schedule_free_adamw", **changes), steps=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamv"}, "unknown optim.name 'adamv'; did you mean 'adamw'"),
        ({"no_decay": ("(",)}, "not a regular expression"),
        ({"beta2": 1.0}, "optim.beta2 is 1.0"),
        ({"learning_rate": -1.0}, "optim.learning_rate is -1.0"),
        ({"clip_norm": 0.0}, "optim.clip_norm is 0.0.*None to turn it off"),
        ({"spike_sigmas": -6.0}, "optim.spike_sigmas is -6.0"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1"),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(make_config(**{"name": "adamw", **changes}), steps=9)


# --- clipping and averages --------------------------------------------------------


def test_clipping_equals_optax_above_the_norm_and_changes_no_bit_below():
    grads = make_tree(0)
    norm = optax.tree.norm(grads)
    reference, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    clipped = clip_by_norm(grads, norm, 1.0)
    assert_close(clipped, reference, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(clipped), 1.0, rtol=1e-6)
    for untouched in (
        clip_by_norm(grads, norm, 2 * float(norm)),
        clip_by_norm(grads, float("nan"), 1.0),
        clip_by_norm(grads, norm, None),
    ):
        assert_close(untouched, grads, rtol=0, atol=0)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    assert_close(clip_by_norm(zeros, 0.0, 1.0), zeros, rtol=0, atol=0)


def test_the_average_starts_at_the_first_weights_and_follows_its_definition():
    first = {"w": jnp.full(3, 100.0, jnp.bfloat16)}
    ema = init_ema(first)
    assert ema["w"].dtype == jnp.float32
    expected = 0.0
    for step in range(200):
        value = math.sin(step)
        ema = update_ema(ema, {"w": jnp.full(3, value)}, 0.9, step)
        keep = min(0.9, step / (step + 10))
        expected = keep * expected + (1 - keep) * value
        if step == 0:
            np.testing.assert_array_equal(ema["w"], np.float32(value))
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-4)


def test_the_average_does_not_share_the_buffers_of_the_weights():
    params = {"w": jnp.ones(3)}
    ema = init_ema(params)
    assert ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
