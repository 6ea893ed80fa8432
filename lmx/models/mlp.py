"""Feed-forward layers: an activation between two products, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmx.core.errors import pick
from lmx.core.schema import Architecture
from lmx.models.linear import make_linear


class Activation(NamedTuple):
    """An elementwise function, and whether it gates a second projection."""

    function: Callable[[jnp.ndarray], jnp.ndarray]
    gated: bool


MLPS = {
    "gelu": Activation(lambda x: jax.nn.gelu(x, approximate=True), gated=False),
    "gelu_exact": Activation(lambda x: jax.nn.gelu(x, approximate=False), gated=False),
    "gelu_gated": Activation(lambda x: jax.nn.gelu(x, approximate=True), gated=True),
    "silu_gated": Activation(jax.nn.silu, gated=True),
    "relu_squared": Activation(lambda x: jnp.square(jax.nn.relu(x)), gated=False),
}


class MLP(nn.Module):
    """down(f(up(x))), or down(f(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202).

    Maps [B, L, D] to [B, L, D]; squared ReLU is So et al. 2021 (arXiv:2109.08668).
    'gelu' is the tanh form of Hendrycks & Gimpel 2016 (arXiv:1606.08415), 'gelu_exact'
    the one with the error function.
    """

    config: Architecture

    @nn.compact
    def __call__(self, x_BLD: jnp.ndarray) -> jnp.ndarray:
        c = self.config
        activation = pick(MLPS, c.mlp, "mlp")
        bias = c.biases == "all"
        into = partial(
            make_linear,
            c,
            inputs=(c.width,),
            outputs=(c.mlp_dim,),
            axes=("embed", "mlp"),
            bias=bias,
        )
        # float32 between the products costs no memory: it is one fused pass.
        hidden = into(name="up")(x_BLD).astype(jnp.float32)
        if activation.gated:
            gate = into(name="gate")(x_BLD).astype(jnp.float32)
            hidden = activation.function(gate) * hidden
        else:
            hidden = activation.function(hidden)
        hidden = hidden.astype(c.compute_dtype)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return make_linear(
            c,
            name="down",
            bias=bias,
            residual=True,
            inputs=(c.mlp_dim,),
            outputs=(c.width,),
            axes=("mlp", "embed"),
        )(hidden)
