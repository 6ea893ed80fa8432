"""Kernels that do not train, alone or with a low-rank change that does.

Neither is differentiated by its base, and neither makes a copy of it: the backward pass
reads what the forward pass read, and of few bits widens it anew.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from lmx.models import kernels
from lmx.models.prepared import Prepared, widened

Base: TypeAlias = "jax.Array | Prepared"  # [*inputs, *outputs], or of few bits


@flax.struct.dataclass
class Frozen:
    """A kernel that does not train; with `index` it is that layer of a stack."""

    base: Base
    index: jax.Array | None = None

    def product(self, x: jax.Array, *, form: str, dtype: Any) -> jax.Array:
        """Returns x [..., I] times the base, [..., O]."""
        return frozen_product(x, self.base, self.index, form=form).astype(dtype)

    def changing(self) -> tuple:
        """Returns what has a gradient: nothing."""
        return ()

    def layer(self, index: int, changing: tuple) -> Frozen:
        """Returns the kernel of a layer of this stack."""
        return Frozen(self.base, jnp.int32(index))


@flax.struct.dataclass
class LowRank:
    """W + scale · A·B: LoRA (Hu et al. 2021, arXiv:2106.09685), or DoRA.

    With `magnitude` the columns of the sum are scaled to these lengths (DoRA, Liu et
    al. 2024, arXiv:2402.09353); their own lengths are constants for the gradient
    (section 4.3 there), and are found without making the sum.

    Attributes:
      base: W of I inputs and O outputs.
      a: [I, r], in float32 as `b` and the magnitude.
      b: [r, O].
      magnitude: [O], or None.
      index: the layer, where the base is that of a stack of layers.
      scale: alpha / r, or alpha / √r for rsLoRA (Kalajdzievski 2023, 2312.03732).
    """

    base: Base
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None = None
    index: jax.Array | None = None
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    def product(self, x: jax.Array, *, form: str, dtype: Any) -> jax.Array:
        """Returns x [..., I] times the kernel, [..., O]."""
        b = self.b * self.scale
        low = kernels.matmul(x, self.a, form=form)
        y = frozen_product(x, self.base, self.index, form=form)
        y = y + kernels.matmul(low, b, form=form, out_dtype=jnp.float32)
        if self.magnitude is not None:
            base = _layer(self.base, self.index)
            lengths = column_lengths(base, self.a, b, dtype=x.dtype)
            y = y * (self.magnitude / lengths)
        return y.astype(dtype)

    def changing(self) -> tuple:
        """Returns what has a gradient."""
        return self.a, self.b, self.magnitude

    def layer(self, index: int, changing: tuple) -> LowRank:
        """Returns the kernel of a layer of this stack."""
        a, b, magnitude = changing
        return dataclasses.replace(
            self, a=a, b=b, magnitude=magnitude, index=jnp.int32(index)
        )


def merged(kernel: Frozen | LowRank, *, inputs: int) -> jax.Array:
    """Returns a kernel of `inputs` inputs as one matrix, float32 [I, O]."""
    weight_IO = _matrix(kernel.base, inputs, jnp.float32)
    if isinstance(kernel, Frozen):
        return weight_IO
    change = jnp.matmul(kernel.a, kernel.b, precision=lax.Precision.HIGHEST)
    weight_IO += kernel.scale * change
    if kernel.magnitude is None:
        return weight_IO
    return weight_IO * (kernel.magnitude / jnp.linalg.norm(weight_IO, axis=0))


def kernel_lengths(base: Base, *, inputs: int) -> jax.Array:
    """Returns the length of each column of a base, float32 [O]."""
    return jnp.linalg.norm(_matrix(base, inputs, jnp.float32), axis=0)


def column_lengths(base: Base, a, b, *, dtype=jnp.float32) -> jax.Array:
    """Returns the length of each column of base + a·b, [O], as a constant.

    |w + a·b|² = |w|² + 2 (aᵀw)·b + b·(aᵀa)b: three small products, none of them as
    large as the base. `dtype` is that of the one that reads it.
    """
    a, b = lax.stop_gradient((a, b))
    w_IO = lax.stop_gradient(_matrix(base, a.shape[-2], dtype))
    squares_O = jnp.sum(jnp.square(w_IO.astype(jnp.float32)), axis=0)
    along_RO = _small(a.T.astype(dtype), w_IO)
    squares_O += jnp.sum((2 * along_RO + _small(_small(a.T, a), b)) * b, axis=0)
    return jnp.sqrt(jnp.maximum(squares_O, jnp.finfo(jnp.float32).tiny))


def frozen_product(
    x: jax.Array, base: Base, index: jax.Array | None = None, *, form: str
) -> jax.Array:
    """Returns x [..., I] times a base that has no gradient, float32 [..., O].

    `index` is the layer of a stacked base. The product takes operands of the type of x.
    Of few bits it is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314): the weights are
    widened for each product, and not kept.
    """
    return _frozen(form, jnp.dtype(x.dtype), x, (base, index))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(form, dtype, x, kernel):
    return _frozen_forward(form, dtype, x, kernel)[0]


def _frozen_forward(form, dtype, x, kernel):
    weight, inputs = _operand(kernel, x, dtype, shape=(x.shape[-1], -1))
    contract = ((x.ndim - 1,), (inputs,))
    return kernels.product(x, weight, contract, jnp.float32, form), kernel


def _frozen_backward(form, dtype, kernel, dy):
    weight, inputs = _operand(kernel, dy, dtype, shape=(-1, dy.shape[-1]))
    contract = ((dy.ndim - 1,), (1 - inputs,))
    dx = kernels.product(dy.astype(dtype), weight, contract, dtype, form)
    return dx, None


_frozen.defvjp(_frozen_forward, _frozen_backward)


def _operand(kernel: tuple[Base, jax.Array | None], x, dtype, *, shape):
    """Returns the base as a matrix in `dtype`, and which of its axes are inputs.

    Where it is a copy, it is made when `x` is there and not before, for each pass anew:
    or the compiler would find those of both passes equal, and keep them.
    """
    base, index = kernel
    if index is not None:
        # A layer's number that is known with x only: XLA's CPU compiler drops barriers.
        first = x[(0,) * x.ndim]
        base = _layer(base, index + (first != first).astype(index.dtype))
    elif isinstance(base, Prepared):
        base, _ = lax.optimization_barrier((base, x))
    if isinstance(base, Prepared):
        return widened(base, dtype), 1
    return base.reshape(shape).astype(dtype), 0


def _layer(base: Base, index: jax.Array | None) -> Base:
    """Returns a layer of a stacked base; the last one for an index past it."""
    if index is None:
        return base
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), base
    )


def _matrix(base: Base, inputs: int, dtype) -> jax.Array:
    """Returns the base in `dtype`, [I, O]: heads belong to the side they are on."""
    if isinstance(base, Prepared):
        return widened(base, dtype).T
    return base.reshape(inputs, -1).astype(dtype)


def _small(a, b) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
