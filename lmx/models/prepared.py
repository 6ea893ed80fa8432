"""Kernels in the form that decodes fastest: turned, and of few bits where asked.

`lmx.generate` makes them once of a trained model's kernels; `Linear` and the output
head take either. They have no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LARGEST = 127  # of a signed byte, the same on both sides of zero
FEWEST = 8  # rows that XLA's CPU compiler multiplies fast by weights of 16 bits
GROUP = 32  # inputs that share the range of int4, as in GGUF


class Prepared(NamedTuple):
    """A kernel of I inputs and O outputs.

    Attributes:
      weight_OI: [O, I] in the compute dtype, or as whole numbers. XLA's CPU products
        read rows of weights twice as fast as columns.
      scale: float32, what a unit of whole numbers weighs: [O] of int8, [O, I / GROUP]
        of int4; None for a compute dtype.
      middle_OG: float32 [O, I / GROUP], the weight that is 0 in int4; or None.
    """

    weight_OI: jax.Array
    scale: jax.Array | None = None
    middle_OG: jax.Array | None = None

    def product(self, x: jax.Array, *, form: str, dtype) -> jax.Array:
        """Returns x [..., I] times the kernel, [..., O]."""
        return product(x, self, form=form).astype(dtype)


def prepare(kernel_IO: jax.Array, *, dtype, form: str) -> Prepared:
    """Returns a kernel [..., I, O] turned and in `dtype`.

    int8 takes the largest weight of each output as 127. int4 parts the range of each
    GROUP of inputs into 15 steps. On CPU these become multiples of the output's int8
    unit: packed numbers would have to be unpacked at each step, which takes longer than
    to read bytes.
    """
    weight_OI = jnp.swapaxes(kernel_IO, -1, -2)
    dtype = jnp.dtype(dtype)
    if dtype == jnp.int4:
        small = _grouped(weight_OI.astype(jnp.float32))
        if form != "cpu":
            return small
        weight_OI, dtype = widened(small, jnp.float32), jnp.dtype(jnp.int8)
    if dtype != jnp.int8:
        return Prepared(weight_OI.astype(dtype))
    weight_OI = weight_OI.astype(jnp.float32)
    unit_O = _unit(weight_OI)
    return Prepared(_rounded(_over(weight_OI, unit_O)), unit_O)


def product(x: jax.Array, kernel: Prepared, *, form: str) -> jax.Array:
    """Returns x [..., I] times the kernel, float32 [..., O].

    On CPU int8 weights meet activations of two int8 parts; elsewhere they are widened
    to the type of x, and only their reading is cheaper.
    """
    x_RI = x.reshape(-1, x.shape[-1])
    if kernel.scale is not None and form == "cpu":
        y_RO = _by_bytes(x_RI.astype(jnp.float32), kernel)
    else:
        weight_OI = widened(kernel, x.dtype)
        R = x_RI.shape[0]
        if form == "cpu" and R < FEWEST and weight_OI.dtype != jnp.float32:
            # One row takes a path that is twice as slow, two are slower than eight.
            x_RI = jnp.pad(x_RI, ((0, FEWEST - R), (0, 0)))
        y_RO = _rows_by_rows(x_RI.astype(weight_OI.dtype), weight_OI, jnp.float32)[:R]
    return y_RO.reshape(*x.shape[:-1], -1)


def _grouped(weight_OI: jax.Array) -> Prepared:
    """Returns float32 weights as int4, group by group."""
    *outer, I = weight_OI.shape  # noqa: E741
    size = math.gcd(I, GROUP)
    weight_OGE = weight_OI.reshape(*outer, I // size, size)
    low_OG = weight_OGE.min(axis=-1)
    step_OG = (weight_OGE.max(axis=-1) - low_OG) / 15
    units_OGE = _over(weight_OGE - low_OG[..., None], step_OG)
    small_OI = (jnp.round(units_OGE) - 8).astype(jnp.int4).reshape(weight_OI.shape)
    return Prepared(small_OI, step_OG, low_OG + 8 * step_OG)


def widened(kernel: Prepared, dtype) -> jax.Array:
    """Returns weights [..., O, I] as numbers; those of a compute dtype as they are."""
    weight_OI, scale, middle_OG = kernel
    if scale is None:
        return weight_OI
    if middle_OG is None:
        return (weight_OI.astype(jnp.float32) * scale[..., None]).astype(dtype)
    weight_OGE = weight_OI.astype(jnp.float32).reshape(*scale.shape, -1)
    weight_OGE = weight_OGE * scale[..., None] + middle_OG[..., None]
    return weight_OGE.reshape(weight_OI.shape).astype(dtype)


def _by_bytes(x_RI: jax.Array, kernel: Prepared) -> jax.Array:
    """Returns x times an int8 kernel, float32 [R, O], as a product of bytes.

    A row of x becomes a row of its nearest multiples of 1/127 of its largest element,
    and one of 1/254 of what they leave. One alone would let a few large activations
    drown the others; two cost nothing, as reading the weights is what takes the time.
    """
    unit_R = _unit(x_RI)
    units_RI = _over(x_RI, unit_R)
    coarse_RI = _rounded(units_RI)
    fine_RI = _rounded((units_RI - coarse_RI) * (2 * LARGEST))
    parts = jnp.concatenate([coarse_RI, fine_RI])
    coarse_RO, fine_RO = jnp.split(_rows_by_rows(parts, kernel.weight_OI, jnp.int32), 2)
    y_RO = coarse_RO.astype(jnp.float32) + fine_RO.astype(jnp.float32) / (2 * LARGEST)
    return y_RO * (unit_R[:, None] * jnp.asarray(kernel.scale))


def _unit(x: jax.Array) -> jax.Array:
    """Returns what one of `LARGEST` steps to the largest element of a row is."""
    return jnp.max(jnp.abs(x), axis=-1) / LARGEST


def _over(x: jax.Array, unit: jax.Array) -> jax.Array:
    """Returns x [..., I] in units of its rows; a row of zeros stays one."""
    return x * jnp.where(unit > 0, 1 / unit, 0)[..., None]


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.round(x).astype(jnp.int8)


def _rows_by_rows(x_RI, w_OI, dtype) -> jax.Array:
    y_RO = lax.dot_general(
        x_RI, w_OI, (((1,), (1,)), ((), ())), preferred_element_type=dtype
    )
    return lax.optimization_barrier(y_RO)
