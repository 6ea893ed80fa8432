"""Feed-forward layers: an activation between two products, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmx.core.errors import pick
from lmx.core.model_schema import Architecture
from lmx.models.linear import make_linear, together


class Activation(NamedTuple):
    """An elementwise function of `up`, or of `gate` and `up` where it is gated."""

    function: Callable[..., jnp.ndarray]
    gated: bool


def gelu(x: jnp.ndarray) -> jnp.ndarray:
    """Returns GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def clamped_silu_gate(gate: jnp.ndarray, up: jnp.ndarray) -> jnp.ndarray:
    """Returns gate · σ(1.702 gate) · (up + 1), both cut off at 7 (gpt-oss)."""
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)


MLPS = {
    "gelu": Activation(gelu, gated=False),
    "gelu_exact": Activation(lambda x: jax.nn.gelu(x, approximate=False), gated=False),
    "gelu_gated": Activation(lambda gate, up: gelu(gate) * up, gated=True),
    "silu_gated": Activation(lambda gate, up: jax.nn.silu(gate) * up, gated=True),
    "silu_clamped_gated": Activation(clamped_silu_gate, gated=True),
    "relu_squared": Activation(lambda x: jnp.square(jax.nn.relu(x)), gated=False),
}


class MLP(nn.Module):
    """down(f(up(x))), or down(f(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202).

    Maps [B, L, D] to [B, L, D]; squared ReLU is So et al. 2021 (arXiv:2109.08668).
    'gelu' is the tanh form of Hendrycks & Gimpel 2016 (arXiv:1606.08415), 'gelu_exact'
    the one with the error function.
    """

    config: Architecture
    hidden_dim: int

    @nn.compact
    def __call__(self, x_BLD: jnp.ndarray) -> jnp.ndarray:
        c = self.config
        activation = pick(MLPS, c.mlp, "mlp")
        bias = c.biases == "all"
        into = partial(
            make_linear,
            c,
            inputs=(c.width,),
            outputs=(self.hidden_dim,),
            axes=("embed", "mlp"),
            bias=bias,
        )
        names = ("up", "gate") if activation.gated else ("up",)
        projected = together([into(name=name) for name in names], x_BLD)
        # float32 between the products costs no memory: it is one fused pass.
        up, *gate = (y.astype(jnp.float32) for y in projected)
        hidden = activation.function(*gate, up)
        hidden = hidden.astype(c.compute_dtype)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return make_linear(
            c,
            name="down",
            bias=bias,
            residual=True,
            inputs=(self.hidden_dim,),
            outputs=(c.width,),
            axes=("mlp", "embed"),
        )(hidden)
