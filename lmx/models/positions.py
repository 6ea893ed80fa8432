"""How attention learns about order: rotary angles and ALiBi slopes.

Learned positions are a table beside the embedding (`decoder.py`), and "none" is
nothing at all.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from lmx.core.schema import Architecture

# Llama 3.1 stretches wavelengths above original_length / 1 and keeps those below
# original_length / 4; between them it blends.
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0


def rotary_frequencies(config: Architecture, *, mixer: str) -> np.ndarray:
    """Returns the radians a position turns each pair by, float64 [H / 2].

    base^(−2i/H) (Su et al. 2021, arXiv:2104.09864, eq. 15); 'linear' scaling divides
    all by the factor (Chen et al. 2023, arXiv:2306.15595), 'llama3' those that turn
    less than once or so in the original context (Llama 3.1's published code). Layers of
    `mixer` 'window' may have a base of their own, which is not scaled.
    """
    H = config.head_dim
    own = config.window_rope_base if mixer == "window" else None
    base = config.rope_base if own is None else own
    frequencies = base ** (-np.arange(0, H, 2, dtype=np.float64) / H)
    if config.rope_scaling is None or own is not None:
        return frequencies
    slow = frequencies / config.rope_factor
    if config.rope_scaling == "linear":
        return slow
    assert config.rope_original_length is not None
    turns = config.rope_original_length * frequencies / (2 * math.pi)
    keep = np.clip((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0, 1)
    return keep * frequencies + (1 - keep) * slow


def rotary_angles(positions_BL: jnp.ndarray, config: Architecture, *, mixer: str):
    """Returns cos and sin, float32 [B, L, 1, H], of position · frequency.

    Entries i and i + H/2 are equal, as published Llama-style weights pair halves rather
    than neighbours. The barrier keeps the compiler from computing them again wherever
    they are used.
    """
    frequencies = np.tile(rotary_frequencies(config, mixer=mixer), 2).astype(np.float32)
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
