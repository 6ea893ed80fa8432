"""Everything that training changes, in one tree."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmx.core.schema import OptimConfig
from lmx.training.guard import GuardState, init_guard
from lmx.training.optimizers import Optimizer, eval_params, init_ema, update_ema


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds: restoring it and the step number resumes exactly.

    Attributes:
      step: int32, optimizer steps done, refused ones included.
      params: the weights that train.
      opt_state: of the optimizer.
      ema: float32 average of the weights, for evaluation and generation, or None.
      guard: history and counts of refused steps.
      frozen: the weights that do not train, None where all do. They are those of
        another model, which a checkpoint names and does not hold.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    guard: GuardState
    frozen: Any = None


def init_params(rng: jax.Array, decoder: nn.Module) -> Any:
    """Returns initial weights, which `rng` decides."""
    tokens = jnp.zeros((1, min(8, decoder.config.context_length)), jnp.int32)
    return nn.meta.unbox(decoder.init(rng, tokens)["params"])


def init_state(
    rng: jax.Array, decoder: nn.Module, optimizer: Optimizer, config: OptimConfig
) -> TrainState:
    """Returns the state before the first step; `rng` decides the initial weights."""
    return state_of(init_params(rng, decoder), optimizer, config)


def state_of(
    params: Any, optimizer: Optimizer, config: OptimConfig, *, frozen: Any = None
) -> TrainState:
    """Returns the state before the first step from `params`."""
    averaged = config.ema_decay is not None or config.name == "schedule_free_adamw"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=init_ema(params) if averaged else None,
        guard=init_guard(),
        frozen=frozen,
    )


def saved(state: TrainState) -> TrainState:
    """Returns what a checkpoint holds of a state."""
    return dataclasses.replace(state, frozen=None)


def update_average(
    state: TrainState, params: Any, opt_state: Any, config: OptimConfig
) -> Any:
    """Returns the average of the weights after a step to `params`, None if not kept.

    A schedule-free optimizer brings its own average; `ema_decay` does not apply to it.
    """
    if config.name == "schedule_free_adamw":
        average = eval_params(config, opt_state, params)
        return jax.tree.map(lambda a, e: a.astype(e.dtype), average, state.ema)
    if config.ema_decay is None:
        return None
    return update_ema(state.ema, params, config.ema_decay, state.step + 1)


def weights_to_use(state: TrainState) -> Any:
    """Returns the weights to evaluate and sample from: the average if there is one."""
    return state.params if state.ema is None else state.ema
