"""How a module declares a parameter: shape, logical axes and initial values at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax


def parameter(
    module: nn.Module,
    name: str,
    *,
    shape: Sequence[int],
    axes: Sequence[str],
    init: Callable[..., jax.Array],
    dtype: Any,
) -> jax.Array:
    """Returns the parameter `name` of `module`, an array of `shape` and `dtype`.

    `axes` names each of its dimensions for `parallel/rules.py`.
    """
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    return cast(jax.Array, module.param(name, boxed, tuple(shape), dtype))
