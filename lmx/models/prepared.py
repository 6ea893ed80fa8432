"""Kernels in the form that decodes fastest: turned, and of 8 bits where asked.

`lmx.generate` makes them once of a trained model's kernels; `Linear` and the output
head take either. They have no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LARGEST = 127  # of a signed byte, the same on both sides of zero


class Prepared(NamedTuple):
    """A kernel of I inputs and O outputs.

    Attributes:
      weight_OI: [O, I] in the compute dtype, or int8. XLA's CPU products read rows of
        weights twice as fast as columns.
      scale_O: float32 [O], what a unit of int8 weighs; None for a compute dtype.
    """

    weight_OI: jax.Array
    scale_O: jax.Array | None = None


def prepare(kernel_IO: jax.Array, *, dtype) -> Prepared:
    """Returns a kernel [..., I, O] turned and in `dtype`.

    int8 takes the largest weight of each output as 127 (symmetric, per channel).
    """
    weight_OI = jnp.swapaxes(kernel_IO, -1, -2)
    if jnp.dtype(dtype) != jnp.int8:
        return Prepared(weight_OI.astype(dtype))
    weight_OI = weight_OI.astype(jnp.float32)
    unit_O = _unit(weight_OI)
    return Prepared(_rounded(_over(weight_OI, unit_O)), unit_O)


def product(x: jax.Array, kernel: Prepared, *, form: str) -> jax.Array:
    """Returns x [..., I] times the kernel, float32 [..., O].

    On CPU int8 weights meet activations of two int8 parts; elsewhere they are widened
    to the type of x, and only their reading is cheaper.
    """
    weight_OI, scale_O = kernel
    x_RI = x.reshape(-1, x.shape[-1])
    R = x_RI.shape[0]
    if scale_O is None:
        if form == "cpu" and R == 1 and weight_OI.dtype != jnp.float32:
            # A product of one row takes a path that is far slower than two rows'.
            x_RI = jnp.concatenate([x_RI, x_RI])
        y_RO = _rows_by_rows(x_RI.astype(weight_OI.dtype), weight_OI, jnp.float32)[:R]
    elif form == "cpu":
        y_RO = _by_bytes(x_RI.astype(jnp.float32), weight_OI) * scale_O
    else:
        y_RO = _rows_by_rows(x_RI, weight_OI.astype(x.dtype), jnp.float32) * scale_O
    return y_RO.reshape(*x.shape[:-1], -1)


def _by_bytes(x_RI: jax.Array, weight_OI: jax.Array) -> jax.Array:
    """Returns x · weightᵀ, float32 [R, O], as a product of bytes.

    A row of x becomes a row of its nearest multiples of 1/127 of its largest element,
    and one of 1/254 of what they leave. One alone would let a few large activations
    drown the others; two cost nothing, as reading the weights is what takes the time.
    """
    unit_R = _unit(x_RI)
    units_RI = _over(x_RI, unit_R)
    coarse_RI = _rounded(units_RI)
    fine_RI = _rounded((units_RI - coarse_RI) * (2 * LARGEST))
    parts = jnp.concatenate([coarse_RI, fine_RI])
    coarse_RO, fine_RO = jnp.split(_rows_by_rows(parts, weight_OI, jnp.int32), 2)
    y_RO = coarse_RO.astype(jnp.float32) + fine_RO.astype(jnp.float32) / (2 * LARGEST)
    return y_RO * unit_R[:, None]


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
