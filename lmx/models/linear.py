"""One linear layer: a kernel with a name for each axis, and its product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from lmx.core.schema import Architecture
from lmx.models import kernels
from lmx.models.parameters import parameter
from lmx.models.prepared import Prepared, product


class Linear(nn.Module):
    """y = x · kernel + bias over the last `len(inputs)` axes of x.

    `inputs` and `outputs` are the sizes and `axes` the logical names of the kernel's
    axes; x is [..., *inputs] and y [..., *outputs] in `dtype`. The product takes
    `dtype` in and accumulates in float32. In place of a trained kernel there may be one
    that was prepared for decoding.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    axes: Sequence[str]
    bias: bool
    init_scale: float
    param_dtype: jnp.dtype
    dtype: jnp.dtype
    form: str
    out_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        rows = x.shape[: x.ndim - len(self.inputs)]
        x_RI = x.reshape(*rows, math.prod(self.inputs)).astype(self.dtype)
        y = self._product(x_RI).reshape(*rows, *self.outputs)
        if self.bias:
            bias = parameter(
                self,
                "bias",
                shape=self.outputs,
                axes=self.axes[len(self.inputs) :],
                init=nn.initializers.zeros,
                dtype=self.param_dtype,
            )
            y = y + bias.astype(y.dtype)
        return y

    def _product(self, x: jnp.ndarray) -> jnp.ndarray:
        """Returns x [..., I] times the kernel, [..., O]."""
        dtype = self.out_dtype or self.dtype
        kernel = self.variables.get("params", {}).get("kernel")
        if isinstance(kernel, Prepared):
            return product(x, kernel, form=self.form).astype(dtype)
        kernel = parameter(
            self,
            "kernel",
            shape=(*self.inputs, *self.outputs),
            axes=self.axes,
            init=nn.initializers.normal(self.init_scale),
            dtype=self.param_dtype,
        )
        kernel_IO = kernel.reshape(math.prod(self.inputs), -1)
        return kernels.matmul(x, kernel_IO, form=self.form, out_dtype=dtype)


def make_linear(
    config: Architecture,
    *,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    axes: Sequence[str],
    bias: bool,
    residual: bool = False,
) -> Linear:
    """Returns a `Linear` in the precision and initial scale of `config`.

    `residual` marks the projection that ends a sublayer: its initial weights are
    smaller by sqrt(2 · layers), so that depth does not inflate the residual stream
    (Radford et al. 2019, section 2.3), and its output has the stream's dtype.
    """
    depth = math.sqrt(2 * config.num_layers) if residual else 1.0
    return Linear(
        inputs=inputs,
        outputs=outputs,
        axes=axes,
        bias=bias,
        init_scale=config.init_scale / depth,
        param_dtype=jnp.dtype(config.param_dtype),
        dtype=jnp.dtype(config.compute_dtype),
        out_dtype=jnp.dtype(config.residual_dtype) if residual else None,
        form=kernels.select_form(config.kernels),
        name=name,
    )
