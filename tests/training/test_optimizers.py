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
from lmx.core.schema import OptimConfig
from lmx.core.trees import flatten_with_names, map_with_names, mirror
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

RATE, DECAY, STEPS = 1e-2, 0.1, 5
SHAPES = {
    "embedding": (7, 6),
    "blocks": {
        "0": {
            "attention": {
                "query": {"kernel": (2, 6, 2, 4), "bias": (2, 2, 4)},
                "out": {"kernel": (2, 2, 4, 6)},
            },
            "mlp": {"up": {"kernel": (2, 6, 10)}, "down": {"kernel": (2, 10, 6)}},
            "mixer_norm": {"scale": (2, 6)},
        }
    },
}
DECAYED = map_with_names(
    lambda name, _: not name.endswith(("bias", "scale")),
    jax.tree.map(lambda _: 0, SHAPES, is_leaf=lambda x: isinstance(x, tuple)),
)


def make_tree(seed: int, dtype=np.float32):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make_config(name: str, **changes) -> OptimConfig:
    options = {
        "name": name,
        "schedule": "constant",
        "warmup_steps": 0,
        "learning_rate": RATE,
        "weight_decay": DECAY,
    }
    return OptimConfig(**{**options, **changes})


def grad_fn(params):
    """The gradient of Σ cosh: its Hessian is diagonal, so s ∗ Hs is exact."""
    return jax.tree.map(jnp.sinh, params)


def objective(params):
    return sum(jnp.sum(jnp.cosh(p)) for p in jax.tree.leaves(params))


def train(optimizer, params, *, steps: int = STEPS, gradients=None, **extra):
    """Returns the parameters after some steps."""
    state = optimizer.init(params)
    update = jax.jit(
        lambda grads, state, params: optimizer.update(grads, state, params, **extra)
    )
    for step in range(steps):
        grads = grad_fn(params) if gradients is None else gradients[step]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(left, right, rtol=1e-5, atol=1e-7) -> None:
    for (name, a), b in zip(
        flatten_with_names(left), jax.tree.leaves(right), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def as_matrices(tree):
    """Takes stacked leaves apart: one matrix or vector for each layer."""

    def split(name, x):
        if not name.startswith("blocks"):
            return {"0": x}
        rows = {"query/kernel": 6, "out/kernel": 8}
        parts = name.split("/")
        fan_in = rows.get("/".join(parts[-2:]))
        layers = [x[i] for i in range(len(x))]
        if fan_in is not None:
            layers = [layer.reshape(fan_in, -1) for layer in layers]
        return {str(i): layer for i, layer in enumerate(layers)}

    return map_with_names(split, tree)


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
