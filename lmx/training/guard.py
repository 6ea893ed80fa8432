"""The step guard: decides on the device whether a step may change the weights.

A step with a non-finite loss or gradient norm never may. With `spike_sigmas`, neither
may one whose loss or norm is far above those of the last steps. The guard is a pure
function of arrays: it neither stops the run (the loop reads `consecutive`) nor goes
back in time.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

HISTORY = 128

Tree = TypeVar("Tree")


class GuardState(NamedTuple):
    """What the guard remembers; every leaf is small and the same on all devices."""

    skipped: jax.Array  # int32: steps refused so far, for whatever reason
    spikes: jax.Array  # int32: those of them that were finite
    consecutive: jax.Array  # int32: non-finite steps in a row, up to now
    recorded: jax.Array  # int32: finite steps so far; the next slot is its rest by 128
    losses: jax.Array  # float32 [HISTORY]
    grad_norms: jax.Array  # float32 [HISTORY]


def init_guard() -> GuardState:
    """Returns the guard before the first step. No two of its leaves share a buffer."""
    return GuardState(
        skipped=jnp.zeros((), jnp.int32),
        spikes=jnp.zeros((), jnp.int32),
        consecutive=jnp.zeros((), jnp.int32),
        recorded=jnp.zeros((), jnp.int32),
        losses=jnp.zeros((HISTORY,), jnp.float32),
        grad_norms=jnp.zeros((HISTORY,), jnp.float32),
    )


def _limit(history: jax.Array, full: jax.Array, sigmas: float | None) -> jax.Array:
    """Returns the largest value that is no spike; infinity while history is short."""
    if sigmas is None:
        return jnp.array(jnp.inf, jnp.float32)
    return jnp.where(full, jnp.mean(history) + sigmas * jnp.std(history), jnp.inf)


def admit(
    guard: GuardState,
    *,
    loss: jax.Array,
    grad_norm: jax.Array,
    spike_sigmas: float | None,
) -> tuple[jax.Array, GuardState]:
    """Returns whether the step may be taken, and the guard after it.

    A spike is a loss or norm more than `spike_sigmas` standard deviations above the
    mean of the last 128, once there are 128. As in OLMo-core, whose rule this is
    (with 6), refused spikes enter that history too. So no shift of level, however
    large, is refused forever: a value that makes up a share p of the history is at
    most sqrt((1 - p) / p) deviations above its mean, and is accepted after
    128 / (1 + spike_sigmas²) refusals, which is 4 for 6 sigmas. The price is a guard
    that sees less for 128 steps after a wild value. Non-finite ones never enter.

    Args:
        guard: the state before the step.
        loss: scalar, of all devices.
        grad_norm: scalar, before clipping, of all devices.
        spike_sigmas: None refuses non-finite steps only.
    """
    loss = jnp.asarray(loss, jnp.float32)
    grad_norm = jnp.asarray(grad_norm, jnp.float32)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    full = guard.recorded >= HISTORY
    spike = finite & (
        (loss > _limit(guard.losses, full, spike_sigmas))
        | (grad_norm > _limit(guard.grad_norms, full, spike_sigmas))
    )
    accept = finite & ~spike

    slot = guard.recorded % HISTORY

    def record(history: jax.Array, value: jax.Array) -> jax.Array:
        return history.at[slot].set(jnp.where(finite, value, history[slot]))

    return accept, GuardState(
        skipped=guard.skipped + (~accept).astype(jnp.int32),
        spikes=guard.spikes + spike.astype(jnp.int32),
        consecutive=jnp.where(finite, 0, guard.consecutive + 1).astype(jnp.int32),
        recorded=guard.recorded + finite.astype(jnp.int32),
        losses=record(guard.losses, loss),
        grad_norms=record(guard.grad_norms, grad_norm),
    )


def select(accept: jax.Array, new: Tree, old: Tree) -> Tree:
    """Returns `new` if accepted, else `old`, bit for bit; leaves agree in dtype."""

    def choose(after: Any, before: Any) -> jax.Array:
        assert after.dtype == before.dtype, (after.dtype, before.dtype)
        return jnp.where(accept, after, before)

    return jax.tree.map(choose, new, old)
