"""Training a mixture of experts: what is added to the loss, and what it does."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig, OptimConfig
from lmx.inputs.batch import Batch
from lmx.models.decoder import Decoder, abstract_params
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.optimizers import make_optimizer, matrix_axes
from lmx.training.state import init_state
from lmx.training.step import summed_gradient, train_step

QUICKLY = {"xla_backend_optimization_level": 0}  # for programs that run a few times
SHAPE = {"vocab_size": 31, "context_length": 16, "width": 16, "num_heads": 2}
EXPERTS = {"ffns": ("moe",), "num_experts": 4, "experts_per_token": 1, "expert_dim": 8}
MODEL = resolve(ModelConfig(**SHAPE, **EXPERTS, num_layers=2, compute_dtype="float32"))


def batch(seed=0):
    """Returns rows in which a token follows from the one before."""
    first = np.random.default_rng(seed).integers(0, 31, (8, 1))
    text = (first * 3 ** np.arange(17)[None]) % 31
    ones = np.ones((8, 16), np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16))
    tokens = text.astype(np.int32)
    return Batch(
        tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions
    )


def random_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32),
        nn.meta.unbox(abstract_params(MODEL)),
    )


def test_the_loss_is_that_of_tokens_and_of_routers():
    rows, params = batch(), random_params()
    plain = NextToken(MODEL, ObjectiveConfig(load_balance_loss=0, router_z_loss=0))
    both = NextToken(MODEL, ObjectiveConfig(load_balance_loss=0.5, router_z_loss=0.25))
    a, b = plain(params, rows), both(params, rows)
    _, sown = Decoder(MODEL).apply(
        {"params": params}, rows.tokens, segment_ids=rows.segment_ids, mutable="router"
    )
    router = sown["router"]["losses"]
    np.testing.assert_allclose(
        b.values, a.values + 0.5 * router.balance + 0.25 * router.z, rtol=1e-5
    )
    np.testing.assert_allclose(b.metrics["loss"], a.metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(b.metrics["load_balance"], router.balance, rtol=1e-6)


def test_a_dense_model_has_no_router_to_train():
    model = resolve(ModelConfig(**SHAPE, num_layers=1, compute_dtype="float32"))
    losses = NextToken(model, ObjectiveConfig(load_balance_loss=9.0))
    params = nn.meta.unbox(abstract_params(model))
    assert set(jax.eval_shape(losses, params, batch()).metrics) == {"loss"}


@pytest.mark.parametrize("capacity", [None, 1.5])
def test_training_lowers_the_loss_and_keeps_experts_busy(capacity):
    model = resolve(
        ModelConfig(
            **SHAPE,
            **EXPERTS,
            num_layers=1,
            compute_dtype="float32",
            expert_capacity=capacity,
        )
    )
    config = OptimConfig(
        learning_rate=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    optimizer = make_optimizer(config, steps=100)
    state = init_state(
        jax.random.key(0), decoder=Decoder(model), optimizer=optimizer, config=config
    )
    objective = NextToken(model, ObjectiveConfig(load_balance_loss=0.05))
    step = jax.jit(
        partial(train_step, objective=objective, optimizer=optimizer, config=config),
        compiler_options=QUICKLY,
    )
    losses, balances = [], []
    for i in range(150):
        state, metrics = step(state, batch(i))
        losses.append(float(metrics["loss"]))
        balances.append(float(metrics["load_balance"]))
    assert losses[0] > 3  # log 31 = 3.4
    assert np.mean(losses[-10:]) < 1
    assert np.mean(balances[-10:]) < 2  # of 4, were one expert to do it all


def test_pieces_of_a_batch_give_the_gradient_of_the_whole():
    rows, params = batch(), random_params()
    objective = NextToken(MODEL, ObjectiveConfig(load_balance_loss=0.5))
    gradient = partial(summed_gradient, objective)
    whole, pieces = (
        jax.jit(partial(gradient, pieces=n), compiler_options=QUICKLY)(params, rows)[0]
        for n in (1, 4)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        whole,
        pieces,
    )


def test_experts_are_matrices_of_their_own_to_the_optimizer():
    axes = matrix_axes("blocks/0/moe/experts_up/kernel", 4)
    assert (axes.reduction_axis, axes.output_axis) == ((2,), (3,))
    kernels = np.random.default_rng(0).standard_normal((2, 3, 6, 4)).astype(np.float32)
    muon = optax.contrib.muon(1.0, muon_weight_dimension_numbers=axes)
    alone = optax.contrib.muon(1.0)

    def update(optimizer, gradient):
        return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]

    together = update(muon, jnp.asarray(kernels))
    for layer in range(2):
        for expert in range(3):
            one = update(alone, jnp.asarray(kernels[layer, expert]))
            np.testing.assert_allclose(together[layer, expert], one, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "rank", "reduces", "gives"),
    [
        ("dense/0/mlp/up/kernel", 3, (1,), (2,)),
        ("blocks/0/attention/query_up_rope/kernel", 4, (1,), (2, 3)),
        ("blocks/0/attention/value/kernel", 4, (1,), (2, 3)),
        ("blocks/0/attention/key_rope/kernel", 3, (1,), (2,)),
        ("blocks/0/attention/out/kernel", 4, (1, 2), (3,)),
    ],
)
def test_latent_attention_has_its_matrices(name, rank, reduces, gives):
    axes = matrix_axes(name, rank)
    assert (axes.reduction_axis, axes.output_axis) == (reduces, gives)
