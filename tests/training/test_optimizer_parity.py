"""Optimizers beside optax used directly, and beside float64 NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.trees import flatten_with_names, map_with_names
from lmx.training.optimizers import (
    make_optimizer,
)

from .optimizer_cases import (
    DECAY,
    DECAYED,
    RATE,
    STEPS,
    as_matrices,
    assert_close,
    grad_fn,
    make_config,
    make_tree,
    objective,
    train,
)

# --- parity with optax, constructed here and not through lmx ----------------------


def optax_reference(name: str):
    """The optax optimizer that `name` should be, for parameters of plain leaves."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, RATE, warmup_steps=2, decay_steps=STEPS + 3, end_value=0.1 * RATE
    )
    options = {"b1": 0.9, "b2": 0.95, "weight_decay": DECAY}
    if name == "adamw":
        return optax.adamw(schedule, mask=DECAYED, eps=1e-8, **options)
    if name == "lion":
        return optax.lion(schedule, mask=DECAYED, **options)
    assert name == "sophia"
    return optax.contrib.sophia(schedule, weight_decay_mask=DECAYED, **options)


@pytest.mark.parametrize("name", ["adamw", "lion", "sophia"])
def test_five_steps_equal_optax_used_directly(name):
    config = make_config(name, schedule="cosine", warmup_steps=2)
    ours = train(make_optimizer(config, steps=STEPS + 3), make_tree(0), grad_fn=grad_fn)
    extra = {"obj_fn": objective} if name == "sophia" else {}
    assert_close(ours, train(optax_reference(name), make_tree(0), **extra))


def test_five_steps_of_schedule_free_equal_optax_used_directly():
    config = make_config("schedule_free_adamw", no_decay=(), warmup_steps=3)
    reference = optax.contrib.schedule_free_adamw(
        RATE, warmup_steps=3, b1=0.9, b2=0.95, weight_decay=DECAY
    )
    ours = train(make_optimizer(config, steps=100), make_tree(0))
    assert_close(ours, train(reference, make_tree(0)))


def test_five_steps_of_adafactor_equal_optax_on_each_layer_alone():
    config = make_config("adafactor")
    reference = optax.adafactor(
        RATE,
        multiply_by_parameter_scale=False,
        momentum=0.9,
        eps=1e-16,
        weight_decay_rate=RATE * DECAY,
        weight_decay_mask=lambda tree: map_with_names(
            lambda name, _: "norm" not in name and "bias" not in name, tree
        ),
    )
    # Gradients that grow in one layer only, so that clipping must tell them apart.
    grow = [
        jax.tree.map(lambda x, t=step: x.at[-1].multiply(4.0**t), make_tree(step))
        for step in range(STEPS)
    ]
    ours = train(make_optimizer(config, steps=STEPS), make_tree(0), gradients=grow)
    alone = train(
        reference,
        as_matrices(make_tree(0)),
        gradients=[as_matrices(grads) for grads in grow],
    )
    assert_close(as_matrices(ours), alone)


def test_adafactor_factors_each_layers_matrix_over_whole_inputs_and_outputs():
    random = np.random.default_rng(0)
    kernel = jnp.asarray(random.normal(size=(3, 130, 2, 70)), jnp.float32)
    params = {"blocks": {"query": {"kernel": kernel}}}
    optimizer = make_optimizer(make_config("adafactor", weight_decay=0.0), steps=9)
    moments = optimizer.init(params)[0]
    assert moments.v_row["blocks"]["query"]["kernel"].size == 3 * 130
    assert moments.v_col["blocks"]["query"]["kernel"].size == 3 * 140
    ours = train(optimizer, params, steps=2)["blocks"]["query"]["kernel"]
    reference = optax.adafactor(
        RATE, multiply_by_parameter_scale=False, momentum=0.9, eps=1e-16
    )
    for layer in range(3):
        alone = train(reference, kernel[layer].reshape(130, 140), steps=2)
        assert_close(ours[layer].reshape(130, 140), alone, rtol=1e-4)


def test_adafactors_second_moment_stops_rising_at_beta2():
    params = {"scale": jnp.ones(3)}
    optimizer = make_optimizer(make_config("adafactor", beta2=0.5), steps=9)
    state = optimizer.init(params)
    for value in (1.0, 1.0, 1.0, 3.0):
        _, state = optimizer.update({"scale": jnp.full(3, value)}, state, params)
    np.testing.assert_allclose(state[0].v["scale"], 0.5 * 1 + 0.5 * 9, rtol=1e-6)


def test_five_steps_of_muon_equal_optax_on_each_layers_matrix_alone():
    config = make_config("muon", matrix_learning_rate=3 * RATE)
    matrices = optax.contrib.muon(
        3 * RATE, beta=0.9, weight_decay=DECAY, consistent_rms=0.2
    )
    vectors = optax.adamw(RATE, b1=0.9, b2=0.95, weight_decay=DECAY, mask=DECAYED)
    ours = train(make_optimizer(config, steps=STEPS), make_tree(0))
    adam = train(vectors, make_tree(0))
    muon = train(matrices, as_matrices(make_tree(0)))
    names = [name for name, _ in flatten_with_names(make_tree(0))]
    seen = set()
    for name, layer in flatten_with_names(as_matrices(ours)):
        leaf, _, index = name.rpartition("/")
        kind = "muon" if leaf.endswith("kernel") else "adam"
        seen.add((kind, leaf))
        reference = muon if kind == "muon" else as_matrices(adam)
        expected = dict(flatten_with_names(reference))[name]
        np.testing.assert_allclose(
            layer, expected, rtol=2e-4, atol=2e-6, err_msg=f"{leaf} {index}"
        )
    assert {leaf for _, leaf in seen} == set(names)
    assert len([kind for kind, _ in seen if kind == "muon"]) == 4


# --- parity with float64 NumPy ----------------------------------------------------


def test_adamw_equals_its_formula_in_float64_numpy():
    random = np.random.default_rng(1)
    weight = random.normal(size=(4, 3))
    gradients = random.normal(size=(STEPS, 4, 3))
    optimizer = make_optimizer(make_config("adamw"), steps=STEPS)
    ours = train(
        optimizer,
        {"kernel": jnp.asarray(weight, jnp.float32)},
        gradients=[{"kernel": jnp.asarray(g, jnp.float32)} for g in gradients],
    )
    first = second = np.zeros((4, 3))
    for t, grad in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * grad
        second = 0.95 * second + 0.05 * grad**2
        direction = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.95**t)) + 1e-8)
        weight = weight - RATE * (direction + DECAY * weight)
    np.testing.assert_allclose(ours["kernel"], weight, rtol=1e-5, atol=1e-6)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Jordan's quintic iteration, five times, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_equals_newton_schulz_of_each_layers_momentum_in_float64_numpy():
    beta, steps = 0.9, 3
    trees = [make_tree(seed) for seed in range(steps)]
    config = make_config("muon", weight_decay=0.0)
    optimizer = make_optimizer(config, steps=steps)
    params = make_tree(9)
    state = optimizer.init(params)
    mu: dict[str, np.ndarray] = {}
    for t, grads in enumerate(trees, start=1):
        updates, state = optimizer.update(grads, state, params)
        got = dict(flatten_with_names(as_matrices(updates)))
        for name, grad in flatten_with_names(as_matrices(grads)):
            if "kernel" not in name:
                continue
            grad = np.asarray(grad, np.float64)
            mu[name] = beta * mu.get(name, 0.0) + (1 - beta) * grad
            # Nesterov's look-ahead, each term freed of its bias as optax does.
            ahead = beta * mu[name] / (1 - beta ** (t + 1))
            ahead = ahead + (1 - beta) * grad / (1 - beta**t)
            scale = 0.2 * math.sqrt(max(grad.shape))
            expected = -RATE * scale * newton_schulz(ahead)
            np.testing.assert_allclose(
                got[name], expected, rtol=1e-3, atol=1e-6, err_msg=name
            )


def test_muons_updates_have_singular_values_near_one_in_every_layer():
    optimizer = make_optimizer(make_config("muon", weight_decay=0.0), steps=1)
    params = make_tree(0)
    updates, _ = optimizer.update(make_tree(3), optimizer.init(params), params)
    for name, layer in flatten_with_names(as_matrices(updates)):
        if "kernel" in name:
            values = np.linalg.svd(np.asarray(layer), compute_uv=False)
            values /= RATE * 0.2 * math.sqrt(max(layer.shape))
            assert values.min() > 0.5, (name, values)
            assert values.max() < 1.3, (name, values)
            assert abs(values.mean() - 1) < 0.25, (name, values)
