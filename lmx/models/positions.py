"""How attention learns about order: rotary angles and ALiBi slopes.

Learned positions are a table beside the embedding (`decoder.py`), and "none" is
nothing at all.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from lmx.core.model_schema import Architecture

# Turns in the original context up to which a wavelength is stretched, and from which
# it is kept: Llama 3.1's published code, and YaRN (arXiv:2309.00071, section 3.2).
TURNS = {"llama3": (1.0, 4.0), "yarn": (1.0, 32.0), "yarn_exact": (1.0, 32.0)}
BY_LENGTH = ("dynamic", "longrope")  # scalings that depend on the document's length


def rotary_frequencies(config: Architecture, *, mixer: str) -> np.ndarray:
    """Returns the radians a position turns each pair by, float64 [R / 2].

    base^(−2i/R) (Su et al. 2021, arXiv:2104.09864, eq. 15), scaled as `rope_scaling`
    says for documents no longer than the original context. Layers of `mixer` 'window'
    may have a base of their own, which is not scaled.
    """
    R = config.rope_dim or config.head_dim
    own = config.window_rope_base if mixer == "window" else None
    base = config.rope_base if own is None else own
    frequencies = base ** (-np.arange(0, R, 2, dtype=np.float64) / R)
    if own is not None:
        return frequencies
    slow = frequencies / config.rope_factor
    match config.rope_scaling:
        case "linear":  # Chen et al. 2023, arXiv:2306.15595
            return slow
        case "longrope":  # Ding et al. 2024, arXiv:2402.13753
            return frequencies / np.asarray(config.rope_short_factors)
        case "llama3" | "yarn" | "yarn_exact":
            keep = _kept(config, frequencies)
            return keep * frequencies + (1 - keep) * slow
    return frequencies


def _kept(config: Architecture, frequencies: np.ndarray) -> np.ndarray:
    """Returns how much of each frequency is kept rather than divided, in [0, 1].

    Llama 3.1 blends along turns in the original context, YaRN along dimensions, which
    it rounds ('yarn') or not ('yarn_exact').
    """
    kind = str(config.rope_scaling)
    low, high = config.rope_turns or TURNS[kind]
    length = config.rope_original_length
    assert length is not None
    if kind == "llama3":
        turns = length * frequencies / (2 * math.pi)
        return np.clip((turns - low) / (high - low), 0, 1)
    R = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        """Returns the (fractional) pair that turns so often."""
        log = math.log(length / (turns * 2 * math.pi))
        return R * log / (2 * math.log(config.rope_base))

    first, last = dimension(high), dimension(low)
    if kind == "yarn":
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, R - 1)
    step = last - first or 0.001
    return 1 - np.clip((np.arange(R // 2) - first) / step, 0, 1)


def attention_factor(config: Architecture) -> float:
    """Returns what rotated vectors are multiplied by, so that scores stay as peaked.

    Its default is that of YaRN (eq. 22), or LongRoPE's.
    """
    if config.rope_attention_factor is not None:
        return config.rope_attention_factor
    stretch = max(1.0, config.rope_factor)
    if config.rope_scaling in ("yarn", "yarn_exact"):
        return 0.1 * math.log(stretch) + 1
    if config.rope_scaling == "longrope":
        assert config.rope_original_length is not None
        return math.sqrt(1 + math.log(stretch) / math.log(config.rope_original_length))
    return 1.0


def rotary_angles(
    positions_BL: jnp.ndarray,
    config: Architecture,
    *,
    mixer: str,
    lengths: jnp.ndarray | None = None,
):
    """Returns cos and sin, float32 [B, L, 1, R], of position · frequency.

    `lengths`, int32 [B, L] or [B, 1], are those of the documents, for scalings that
    depend on them. Entries i and i + R/2 are equal, as published Llama-style weights
    pair halves rather than neighbours. The barrier keeps the compiler from computing
    them again wherever they are used.
    """
    frequencies: jnp.ndarray | np.ndarray = rotary_frequencies(config, mixer=mixer)
    scaled = mixer != "window" or config.window_rope_base is None
    if scaled and config.rope_scaling in BY_LENGTH:
        frequencies = _by_length(config, np.asarray(frequencies), lengths)
    frequencies = jnp.concatenate([jnp.asarray(frequencies, jnp.float32)] * 2, axis=-1)
    angles = positions_BL[:, :, None, None] * frequencies
    factor = attention_factor(config) if scaled else 1.0
    return lax.optimization_barrier(
        (factor * jnp.cos(angles), factor * jnp.sin(angles))
    )


def _by_length(config: Architecture, short: np.ndarray, lengths) -> jnp.ndarray:
    """Returns frequencies, float32 [B, L or 1, 1, R / 2], for documents of `lengths`.

    'longrope' has two sets; 'dynamic' raises the base with the length past the
    original one, so that the longest wavelength is `factor` times as long as needed.
    """
    original = config.rope_original_length
    assert original is not None
    lengths = lengths[..., None, None]
    if config.rope_scaling == "longrope":
        ratio = np.asarray(config.rope_short_factors) / config.rope_long_factors
        long = np.asarray(short * ratio, np.float32)
        return jnp.where(lengths > original, long, np.asarray(short, np.float32))
    pairs = np.arange(len(short), dtype=np.float32)
    past = jnp.maximum(lengths, original) / original
    stretch = config.rope_factor * past - (config.rope_factor - 1)
    return jnp.asarray(short, jnp.float32) * stretch ** (-pairs / (len(short) - 1))


def documents(segments_BL: jnp.ndarray | None, shape: tuple[int, ...]):
    """Returns the first and the last index of each token's document, int32 [B, L].

    `segments_BL` numbers the documents of a row, one after the other; None is one.
    """
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    if segments_BL is None:
        return jnp.zeros_like(index), jnp.full_like(index, shape[1] - 1)
    differs = segments_BL[:, 1:] != segments_BL[:, :-1]
    starts = jnp.pad(differs, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(differs, ((0, 0), (0, 1)), constant_values=True)
    first = lax.cummax(jnp.where(starts, index, 0), axis=1)
    last = lax.cummin(jnp.where(ends, index, shape[1]), axis=1, reverse=True)
    return first, last


def document_lengths(positions_BL: jnp.ndarray, segments_BL) -> jnp.ndarray:
    """Returns the length of each token's document, int32 [B, L].

    It is the position of its last token, plus one.
    """
    _, last_BL = documents(segments_BL, positions_BL.shape)
    return jnp.take_along_axis(positions_BL, last_BL, axis=1) + 1


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns the slope of each head, float32 [N] (Press et al. 2021, 2108.12409).

    For n a power of two the slopes are 2^(−8i/n), i = 1..n; other counts take every
    second slope of the next power for the remaining heads, as the authors do.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    finer = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1) / (2 * power))
    return np.concatenate([slopes, finer[0::2][: num_heads - power]]).astype(np.float32)
