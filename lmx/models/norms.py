"""Normalisation layers: RMSNorm and LayerNorm. Statistics are float32 at any dtype."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from lmx.core.errors import pick


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · scale (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    Normalises the last axis of `x` [..., D]; `axis` is its logical name.
    """

    epsilon: float
    axis: str
    bias: bool
    param_dtype: jnp.dtype
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.float32)
        y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / sqrt(variance + ε) · scale + bias (Ba et al. 2016, arXiv:1607.06450).

    Normalises the last axis of `x` [..., D]; without `bias` it only scales.
    """

    epsilon: float
    axis: str
    bias: bool
    param_dtype: jnp.dtype
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        shape = (x.shape[-1],)
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param("scale", init, shape, self.param_dtype)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        y = y * scale
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
            y = y + self.param("bias", zeros, shape, self.param_dtype)
        return y.astype(self.dtype)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def make_norm(kind: str, config, *, name: str, axis: str = "embed") -> nn.Module:
    """Returns the norm `kind` as `config` (a ModelConfig) describes it."""
    return pick(NORMS, kind, "norm")(
        epsilon=config.norm_epsilon,
        axis=axis,
        bias=config.biases == "all",
        param_dtype=jnp.dtype(config.param_dtype),
        dtype=jnp.dtype(config.compute_dtype),
        name=name,
    )
