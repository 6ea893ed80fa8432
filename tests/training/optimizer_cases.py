"""A small tree of parameters, and a few steps of an optimizer on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmx.core.schema import OptimConfig
from lmx.core.trees import flatten_with_names, map_with_names

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
