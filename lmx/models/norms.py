"""Normalisation layers: RMSNorm and LayerNorm. Statistics are float32 at any dtype."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from lmx.core.errors import pick
from lmx.models import kernels
from lmx.models.parameters import parameter


class Norm(nn.Module):
    """What norms share: numbers, and how they declare their vectors.

    `axis` is the logical name of the last axis, which is normalised.
    """

    epsilon: float
    axis: str
    bias: bool
    param_dtype: jnp.dtype
    dtype: jnp.dtype

    def _vector(self, name: str, size: int, init) -> jnp.ndarray:
        return parameter(
            self,
            name,
            shape=(size,),
            axes=(self.axis,),
            init=init,
            dtype=self.param_dtype,
        )


class RMSNorm(Norm):
    """x / sqrt(mean(x²) + ε) · scale (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    Normalises the last axis of `x` [..., D].
    """

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        scale = self._vector("scale", x.shape[-1], nn.initializers.ones)
        return kernels.rms_norm(x, scale, epsilon=self.epsilon, dtype=self.dtype)


class RMSNormPlusOne(Norm):
    """x / sqrt(mean(x²) + ε) · (1 + scale), as Gemma has it (arXiv:2403.08295).

    The stored weights are near 0, so that weight decay pulls the factor to 1.
    """

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        scale = self._vector("scale", x.shape[-1], nn.initializers.zeros)
        scale = 1 + scale.astype(jnp.float32)
        return kernels.rms_norm(x, scale, epsilon=self.epsilon, dtype=self.dtype)


class LayerNorm(Norm):
    """(x − mean) / sqrt(variance + ε) · scale + bias (Ba et al. 2016, 1607.06450).

    Normalises the last axis of `x` [..., D]; without `bias` it only scales.
    """

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        scale = self._vector("scale", x.shape[-1], nn.initializers.ones)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        y = y * scale
        if self.bias:
            y = y + self._vector("bias", x.shape[-1], nn.initializers.zeros)
        return y.astype(self.dtype)


NORMS = {
    "rmsnorm": RMSNorm,
    "layernorm": LayerNorm,
    "rmsnorm_plus_one": RMSNormPlusOne,
}


def make_norm(
    kind: str, config, *, name: str, axis: str = "embed", dtype: str | None = None
) -> nn.Module:
    """Returns the norm `kind` as `config` (a ModelConfig) describes it.

    Its output has `dtype`, by default the one that matrix products take.
    """
    return pick(NORMS, kind, "norm")(
        epsilon=config.norm_epsilon,
        axis=axis,
        bias=config.biases == "all",
        param_dtype=jnp.dtype(config.param_dtype),
        dtype=jnp.dtype(dtype or config.compute_dtype),
        name=name,
    )
