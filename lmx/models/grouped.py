"""Products of sorted rows, each with the matrix of its group: what experts compute.

Form 'xla' is `ragged_dot`, which accelerators have kernels for. XLA's CPU compiler
would multiply all rows with all matrices (64 experts: 100 times the time of the rows'
own products), so form 'cpu' goes through blocks of rows in a loop.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmx.models import kernels

LARGEST_BLOCK = 128  # rows of one group per product


def grouped_matmul(
    x_RI: jax.Array,
    w_EIO: jax.Array,
    sizes_E: jax.Array,
    *,
    form: str,
    out_dtype: kernels.DTypeLike,
) -> jax.Array:
    """Returns [R, O]: the first sizes[0] rows times w[0], the next sizes[1] times w[1].

    The sizes (int32) add up to R. Weights are rounded to the type of `x`; products
    accumulate in float32.
    """
    w_EIO = w_EIO.astype(x_RI.dtype)
    if form == "cpu":
        return _grouped(jnp.dtype(out_dtype), x_RI, w_EIO, sizes_E)
    y_RO = lax.ragged_dot(x_RI, w_EIO, sizes_E, preferred_element_type=jnp.float32)
    return y_RO.astype(out_dtype)


class Blocks(NamedTuple):
    """The rows of each group, cut into blocks that start with the group.

    A block may reach into the next groups: what it writes there is overwritten, as
    blocks go in order, and what it reads there must be masked.

    Attributes:
      size: rows of a block.
      total: int32 scalar, how many there are.
      ends_E: int32 [E], blocks up to the end of each group.
      starts_E: int32 [E], first row of each group.
      sizes_E: int32 [E], rows of each group.
    """

    size: int
    total: jax.Array
    ends_E: jax.Array
    starts_E: jax.Array
    sizes_E: jax.Array

    def at(self, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the group of block j, its first row, and which rows are its own."""
        e = jnp.searchsorted(self.ends_E, j, side="right")
        before = jnp.where(e > 0, self.ends_E[e - 1], 0)
        offset = (j - before) * self.size
        own = jnp.arange(self.size) < self.sizes_E[e] - offset
        return e, self.starts_E[e] + offset, own


def _blocks(rows: int, sizes_E: jax.Array) -> Blocks:
    even = -(-rows // sizes_E.shape[0])
    size = max(2, min(LARGEST_BLOCK, 1 << (even - 1).bit_length()))
    ends_E = jnp.cumsum(-(-sizes_E // size))
    return Blocks(size, ends_E[-1], ends_E, jnp.cumsum(sizes_E) - sizes_E, sizes_E)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(out_dtype, x_RI, w_EIO, sizes_E):
    return _grouped_forward(out_dtype, x_RI, w_EIO, sizes_E)[0]


def _grouped_forward(out_dtype, x_RI, w_EIO, sizes_E):
    y_RO = _multiply(x_RI, w_EIO, sizes_E, out_dtype, contract=0)
    return y_RO, (x_RI, w_EIO, sizes_E)


def _grouped_backward(out_dtype, saved, dy_RO):
    x_RI, w_EIO, sizes_E = saved
    dy_RO = dy_RO.astype(x_RI.dtype)
    dx_RI = _multiply(dy_RO, w_EIO, sizes_E, x_RI.dtype, contract=1)
    blocks = _blocks(x_RI.shape[0], sizes_E)
    x, dy = _padded(x_RI, blocks), _padded(dy_RO, blocks)

    def add(j, dw_EIO):
        e, start, own = blocks.at(j)
        x_b = jnp.where(own[:, None], _cut(x, start, blocks), 0)
        dy_b = _cut(dy, start, blocks)
        dw_IO = kernels.weight_gradient(x_b, dy_b, jnp.float32, "cpu")
        return dw_EIO.at[e].add(dw_IO)

    zeros = jnp.zeros(w_EIO.shape, jnp.float32)
    dw_EIO = lax.fori_loop(0, blocks.total, add, zeros)
    return dx_RI, dw_EIO.astype(w_EIO.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _multiply(x_RI, w_EIO, sizes_E, dtype, *, contract: int) -> jax.Array:
    """Returns the rows times the matrix of their group, over its axis `contract`."""
    R, outputs = x_RI.shape[0], w_EIO.shape[2 - contract]
    blocks = _blocks(R, sizes_E)
    x = _padded(x_RI, blocks)

    def write(j, y):
        e, start, _ = blocks.at(j)
        w = lax.dynamic_index_in_dim(w_EIO, e, keepdims=False)
        x_b = _cut(x, start, blocks)
        y_b = kernels.product(x_b, w, ((1,), (contract,)), dtype, "cpu")
        return lax.dynamic_update_slice_in_dim(y, y_b, start, axis=0)

    y = jnp.zeros((x.shape[0], outputs), dtype)
    return lax.fori_loop(0, blocks.total, write, y)[:R]


def _padded(x, blocks: Blocks):
    return jnp.pad(x, ((0, blocks.size), (0, 0)))


def _cut(x, start, blocks: Blocks):
    return lax.dynamic_slice_in_dim(x, start, blocks.size, axis=0)
