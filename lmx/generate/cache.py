"""The key/value cache of a batch: made, filled with prompts, grown.

What a layer keeps and where is `models.decoder.init_cache`'s; here are the lengths,
powers of two, so that few programs are compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.model_schema import Architecture
from lmx.models.decoder import Decoder, init_cache

SMALLEST_PIECE, LARGEST_PIECE = 32, 512  # prefilled tokens of a row per call
SMALLEST_CACHE = 256  # slots; less saves little and compiles more


def power_of_two(count: int, *, at_least: int = 1) -> int:
    """Returns the smallest power of two that is ≥ `count` and ≥ `at_least`."""
    return max(at_least, 1 << max(0, count - 1).bit_length())


def slots_for(config: Architecture, used: int) -> int:
    """Returns the cache length for rows of `used` tokens: a power of two, or all."""
    return min(config.context_length, power_of_two(used, at_least=SMALLEST_CACHE))


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "slots", "piece"))
def empty(*, config, batch_size, slots, piece):
    """Returns an empty cache for rows of `slots` tokens."""
    return init_cache(config, batch_size=batch_size, length=slots, piece=piece)


def prefilled(
    params: Any,
    prompts: Sequence[Sequence[int]],
    limits_B: np.ndarray,
    *,
    config: Architecture,
    slots: int,
    pad_id: int,
) -> Any:
    """Returns a cache with all but the last token of each prompt, in padded pieces.

    A prompt that is read in both directions is one piece, its last token included: the
    others see it. That it is fed again writes the same.
    """
    lengths_B = np.asarray([len(prompt) for prompt in prompts], np.int32)
    whole = config.attention == "prefix"
    length = int(lengths_B.max()) - (not whole)
    largest = length if whole else LARGEST_PIECE
    cache = empty(
        config=config, batch_size=len(prompts), slots=slots, piece=LARGEST_PIECE
    )
    start = 0
    while start < length:
        piece = min(length - start, largest)
        width = min(power_of_two(piece, at_least=SMALLEST_PIECE), slots - start)
        tokens_BL = np.full((len(prompts), width), pad_id, np.int32)
        for row, prompt in enumerate(prompts):
            part = prompt[start : start + width]
            tokens_BL[row, : len(part)] = part
        place = (np.int32(start), lengths_B, limits_B)
        cache = fill(params, cache, tokens_BL, *place, config=config)
        start += width
    return cache


@functools.partial(jax.jit, static_argnames=("config", "slots", "piece"))
def grow(cache, *, config, slots, piece):
    """Returns the cache with empty slots added at the end: no ring has turned yet.

    A plane grows while it is as long as the rows, so its slots are still positions.
    """
    B = jax.tree.leaves(cache)[0].shape[1]
    shapes = jax.eval_shape(
        lambda: init_cache(config, batch_size=B, length=slots, piece=piece)
    )

    def pad(plane, goal):
        return jnp.pad(
            plane, [(0, 0)] * 3 + [(0, goal.shape[3] - plane.shape[3]), (0, 0)]
        )

    return jax.tree.map(pad, cache, shapes)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def fill(params, cache, tokens_BL, start, lengths_B, limits_B, *, config):
    """Returns the cache with tokens at positions start, start + 1, … written to it.

    What stands at or after a row's length is padding; it may grow to its limit.
    """
    positions_L = start + jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
    positions_BL = jnp.broadcast_to(positions_L, tokens_BL.shape)
    real_BL = positions_BL < lengths_B[:, None]
    _, cache = Decoder(config).apply(
        {"params": params},
        tokens_BL,
        positions=positions_BL,
        segment_ids=real_BL.astype(jnp.int32),
        prefix=real_BL if config.attention == "prefix" else None,
        cache=cache,
        lengths=grown(config, now=lengths_B, limit=limits_B),
    )
    return cache


def grown(config: Architecture, *, now, limit):
    """Returns the lengths [B] that decide how rows rotate, where scalings ask for them.

    'dynamic' goes by what is there `now`, as transformers does. 'longrope' has one
    rotation for all that the row may grow to, for its two do not go together.
    """
    return limit if config.rope_scaling == "longrope" else now
