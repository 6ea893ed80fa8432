"""Learning-rate schedules: pure functions of the step, from optax's pieces.

Each rises linearly from 0 at step 0 to the peak at `warmup_steps`, follows its shape
until `steps`, and holds its last value after that. What the schedules are not: a
state. The rate of any step can be asked for at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from lmx.core.errors import UserError, pick
from lmx.core.schema import OptimConfig

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def constant(
    config: OptimConfig, *, peak: float, warmup: int, steps: int
) -> optax.Schedule:
    """Stays at the peak.

    Like its neighbours it counts from the end of the warm-up, `warmup` of `steps`.
    """
    del config, warmup, steps
    return optax.constant_schedule(peak)


def cosine(
    config: OptimConfig, *, peak: float, warmup: int, steps: int
) -> optax.Schedule:
    """Half a cosine from the peak to its final fraction (Loshchilov, 1608.03983)."""
    return optax.cosine_decay_schedule(
        peak, steps - warmup, alpha=config.final_fraction
    )


def linear(
    config: OptimConfig, *, peak: float, warmup: int, steps: int
) -> optax.Schedule:
    """A straight line from the peak to its final fraction."""
    return optax.linear_schedule(peak, peak * config.final_fraction, steps - warmup)


def wsd(config: OptimConfig, *, peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Stable at the peak, then decays as 1 − √x over `decay_fraction` of all steps.

    The shape is that of Hägele et al., "Scaling Laws and Compute-Optimal Training
    Beyond Fixed Training Durations" (2405.18392), who found 1 − √x better than a
    straight line; `final_fraction` is where it ends.
    """
    length = steps - warmup
    decay_steps = min(max(1, round(config.decay_fraction * steps)), length)

    def decay(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip(jnp.asarray(step, jnp.float32) / decay_steps, 0.0, 1.0)
        return peak * (1.0 - (1.0 - config.final_fraction) * jnp.sqrt(done))

    stable = optax.constant_schedule(peak)
    return optax.join_schedules([stable, decay], [length - decay_steps])


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
}


def _check(config: OptimConfig, steps: int) -> None:
    if steps < 1:
        raise UserError(f"steps is {steps}; a run has at least 1")
    if config.warmup_steps < 0:
        raise UserError(
            f"optim.warmup_steps is {config.warmup_steps}; it must be 0 (no warm-up) "
            "or more"
        )
    if not 0.0 <= config.final_fraction <= 1.0:
        raise UserError(
            f"optim.final_fraction is {config.final_fraction}; it is a share of the "
            "peak rate, from 0 to 1"
        )
    if not 0.0 < config.decay_fraction <= 1.0:
        raise UserError(
            f"optim.decay_fraction is {config.decay_fraction}; it is a share of the "
            "steps, above 0 and at most 1"
        )


def make_schedule(
    config: OptimConfig, steps: int, peak: float | None = None
) -> Schedule:
    """Returns step → learning rate (float32), for a run of `steps` optimizer steps.

    A run shorter than its warm-up warms up all its length and reaches the peak at its
    end. WSD's decay is a share of all steps, cut to what the warm-up leaves.

    Args:
        config: names the schedule and its parameters.
        steps: length of the run; the rate stays at its last value beyond it.
        peak: replaces `config.learning_rate`, as for Muon's matrices.

    Raises:
        UserError: an unknown schedule, or a parameter out of its range.
    """
    shape = pick(SCHEDULES, config.schedule, "optim.schedule")
    _check(config, steps)
    peak = config.learning_rate if peak is None else peak
    warmup = min(config.warmup_steps, steps)
    after: optax.Schedule
    if warmup == steps:
        after = optax.constant_schedule(peak)
    else:
        after = shape(config, peak=peak, warmup=warmup, steps=steps)
    if warmup:
        rise = optax.linear_schedule(0.0, peak, warmup)
        after = optax.join_schedules([rise, after], [warmup])
    return lambda step: jnp.asarray(after(step), jnp.float32)
