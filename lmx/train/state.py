"""Everything that training changes, in one tree."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmx.core.schema import OptimConfig
from lmx.train.guard import GuardState, init_guard
from lmx.train.optimizers import Optimizer, eval_params, init_ema


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds: restoring it and the step number resumes exactly.

    Attributes:
      step: int32, optimizer steps done, refused ones included.
      params: the weights.
      opt_state: of the optimizer.
      ema: float32 average of the weights, or None.
      guard: history and counts of refused steps.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    guard: GuardState


def init_state(
    rng: jax.Array, decoder: nn.Module, optimizer: Optimizer, *, ema: bool
) -> TrainState:
    """Returns the state before the first step; `rng` decides the initial weights."""
    tokens = jnp.zeros((1, min(8, decoder.config.context_length)), jnp.int32)
    params = nn.meta.unbox(decoder.init(rng, tokens)["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=init_ema(params) if ema else None,
        guard=init_guard(),
    )


def weights_to_use(state: TrainState, config: OptimConfig) -> Any:
    """Returns the weights to evaluate and sample from: the average if there is one."""
    if state.ema is None:
        return eval_params(config, state.opt_state, state.params)
    return jax.tree.map(lambda e, p: e.astype(p.dtype), state.ema, state.params)
