"""One linear layer: a kernel with a name for each axis, and its product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import flax.linen as nn
import jax.numpy as jnp

from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.parameters import parameter
from lmx.models.prepared import Prepared, product
from lmx.models.wrapped import Wrapped


class Linear(nn.Module):
    """y = x · kernel + bias over the last `len(inputs)` axes of x.

    `inputs` and `outputs` are the sizes and `axes` the logical names of the kernel's
    axes; x is [..., *inputs] and y [..., *outputs] in `dtype`. The product takes
    `dtype` in and accumulates in float32. In place of the kernel there may be one that
    knows its product itself (`wrapped.py`).
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
    def __call__(self, x: jnp.ndarray, product=None) -> jnp.ndarray:
        """Returns y; `product` is x · kernel where that is known, [..., O]."""
        rows = x.shape[: x.ndim - len(self.inputs)]
        if product is None:
            x_RI = x.reshape(*rows, math.prod(self.inputs)).astype(self.dtype)
            product = self._product(x_RI)
        product = product.astype(self.out_dtype or self.dtype)
        y = product.reshape(*rows, *self.outputs)
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
        if (wrapped := self.wrapped()) is not None:
            return wrapped.product(x, form=self.form, dtype=dtype)
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

    def wrapped(self) -> Wrapped | None:
        """Returns the kernel if it is no plain array."""
        kernel = self.variables.get("params", {}).get("kernel")
        return kernel if isinstance(kernel, Wrapped) else None


def together(layers: Sequence[Linear], x: jnp.ndarray) -> list[jnp.ndarray]:
    """Returns what each layer makes of x [..., I].

    The first may hold the prepared kernels of all, side by side: then it is one
    product, as small ones take more time to start than to compute.
    """
    kernel = layers[0].wrapped()
    sizes = [math.prod(layer.outputs) for layer in layers]
    if not isinstance(kernel, Prepared) or kernel.weight_OI.shape[0] == sizes[0]:
        return [layer(x) for layer in layers]
    y = product(x.astype(layers[0].dtype), kernel, form=layers[0].form)
    parts = jnp.split(y, list(accumulate(sizes))[:-1], axis=-1)
    return [layer(x, part) for layer, part in zip(layers, parts, strict=True)]


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
