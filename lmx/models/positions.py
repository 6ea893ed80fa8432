"""How attention learns about order: rotary angles and ALiBi slopes.

Learned positions are a table beside the embedding (`decoder.py`), and "none" is
nothing at all.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax


def rotary_angles(positions_BL: jnp.ndarray, *, head_dim: int, base: float):
    """Returns cos and sin, float32 [B, L, 1, H], of position · base^(−2i/H).

    Su et al. 2021 (arXiv:2104.09864), eq. 15; entries i and i + H/2 are equal, as
    published Llama-style weights pair halves rather than neighbours. The barrier keeps
    the compiler from computing them again wherever they are used.
    """
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    frequencies = np.tile(frequencies, 2).astype(np.float32)
    angles = positions_BL[:, :, None, None] * frequencies
    return lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns the slope of each head, float32 [N] (Press et al. 2021, 2108.12409).

    For n a power of two the slopes are 2^(−8i/n), i = 1..n; other counts take every
    second slope of the next power for the remaining heads, as the authors do.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    finer = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1) / (2 * power))
    return np.concatenate([slopes, finer[0::2][: num_heads - power]]).astype(np.float32)
