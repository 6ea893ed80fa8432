"""The training step: one pure function from (state, batch) to (state, metrics).

`jit` over any mesh and `pmap` compile this same function. Gradients are of the *sum*
of weighted losses; sums are added over micro-batches, then over devices (`all_reduce`,
which is the identity under jit, where arrays are global), and divided once by the
weight of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lmx.core.schema import OptimConfig
from lmx.inputs.batch import Batch
from lmx.training.guard import admit, select
from lmx.training.objective import Losses, Objective
from lmx.training.optimizers import Optimizer, clip_by_norm
from lmx.training.state import TrainState, update_average

Reduce = Callable[[Any], Any]
Join = Callable[[Any, Any], Any]
Score = Callable[[Any, Batch], Losses]  # what an `Objective` is called as


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: Optimizer,
    config: OptimConfig,
    all_reduce: Reduce = lambda sums: sums,
    join: Join = lambda params, frozen: params,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and scalar metrics, all float32 or int32 on the device.

    A step whose loss or gradient is not finite (or spikes) changes nothing but the
    guard's counts. `join` makes what the objective takes of the parameters that train
    and those that do not.
    """
    pieces = config.accumulate_steps or 1

    def whole(params, rows):
        return objective(join(params, state.frozen), rows)

    def mean_gradient(params):
        grads, sums = all_reduce(summed_gradient(whole, params, batch, pieces=pieces))
        total, tokens = sums.pop("weight"), sums.pop("tokens")
        weight = jnp.where(total > 0, total, 1.0)  # weights may be any small numbers
        means = {name: summed / weight for name, summed in sums.items()}
        return jax.tree.map(lambda g: g / weight, grads), {**means, "tokens": tokens}

    grads, metrics = mean_gradient(state.params)
    grad_norm = optax.tree.norm(grads)
    accept, guard = admit(
        state.guard,
        loss=metrics["value"],
        grad_norm=grad_norm,
        spike_sigmas=config.spike_sigmas,
    )
    updates, opt_state = optimizer.update(
        clip_by_norm(grads, grad_norm, config.clip_norm),
        state.opt_state,
        state.params,
        grad_fn=lambda params: mean_gradient(params)[0],
    )
    params = optax.apply_updates(state.params, updates)
    ema = update_average(state, params, opt_state, config)
    params, opt_state, ema = select(
        accept, (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    )
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=ema,
        guard=guard,
        frozen=state.frozen,
    )
    del metrics["value"]
    return new_state, {
        **metrics,
        "grad_norm": grad_norm,
        "skipped": guard.skipped,
        "spikes": guard.spikes,
        "consecutive_nonfinite": guard.consecutive,
    }


def summed_gradient(
    objective: Score, params: Any, batch: Batch, *, pieces: int = 1
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns d(Σ weight·loss)/d params and the sums.

    These are {weight, value, metrics…}, and tokens, of the weights of the batch.

    The batch is cut into `pieces` micro-batches, each with every `pieces`-th row, so
    that no row leaves its device; only one micro-batch's activations exist at a time.
    """

    def loss(params, rows):
        losses = objective(params, rows)
        value = jnp.sum(losses.values * losses.weights)
        sums = {k: jnp.sum(v * losses.weights) for k, v in losses.metrics.items()}
        counts = {"weight": losses.weights, "tokens": rows.loss_weights}
        counts = {name: jnp.sum(x) for name, x in counts.items()}
        return value, {**sums, "value": value, **counts}

    def gradient(params, rows):
        grads, sums = jax.grad(loss, has_aux=True)(params, rows)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums

    if pieces == 1:
        return gradient(params, batch)

    def add(total, rows):
        return jax.tree.map(jnp.add, total, gradient(params, rows)), None

    micro = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1), batch
    )
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(add, zeros, micro)[0]


def eval_step(
    params: Any, batch: Batch, *, objective: Objective
) -> dict[str, jax.Array]:
    """Returns the sums {weight, metrics…} of each row, float32 [B]; no gradient."""
    losses = objective(params, batch)
    sums = {k: jnp.sum(v * losses.weights, 1) for k, v in losses.metrics.items()}
    return {**sums, "weight": jnp.sum(losses.weights, 1)}
