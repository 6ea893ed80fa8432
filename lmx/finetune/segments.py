"""Rows of segments as pairs: sums over each, and completions changed for others'.

Segments 2k-1 and 2k of a row are a pair, chosen and rejected. A row of L positions has
at most L segments, so all shapes are known; what is not there has no tokens.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from lmx.inputs.batch import Batch


def segment_sums(values_L: jax.Array, segments_L: jax.Array) -> jax.Array:
    """Returns [L + 1], the sum of values over each segment of a row; 0 is padding."""
    count = segments_L.shape[0] + 1
    return jax.ops.segment_sum(values_L, segments_L, num_segments=count)


def pair_sums(values_BL: jax.Array, segments_BL: jax.Array) -> jax.Array:
    """Returns [B, P, 2], the sum over the chosen and the rejected side of each pair."""
    rows, length = values_BL.shape
    sums_BS = jax.vmap(segment_sums)(values_BL, segments_BL)
    pairs = length // 2
    return sums_BS[:, 1 : 2 * pairs + 1].reshape(rows, pairs, 2)


def last_positions(segments_BL: jax.Array) -> jax.Array:
    """Returns bool [B, L]: where a segment, or padding, ends."""
    following_BL = jnp.pad(segments_BL[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    return segments_BL != following_BL


def with_completions_of_others(batch: Batch) -> tuple[Batch, jax.Array]:
    """Returns rows in which each prompt has a completion of the next pair's side.

    The last pair's is that of the first, so a row keeps its number of tokens. A
    completion begins with the first token that is learned, and tokens keep their
    weights. Also returns bool [B, L + 1], which segments have one: in a row with a
    single pair, none.
    """
    return jax.vmap(_cycled)(batch)


def _cycled(row: Batch) -> tuple[Batch, jax.Array]:
    """Does it for one row, [L] each."""
    L = row.tokens.shape[0]
    segment_S, place_L = jnp.arange(L + 1), jnp.arange(L)
    number = partial(jax.ops.segment_min, num_segments=L + 1)
    size_S = segment_sums(jnp.ones(L, jnp.int32), row.segment_ids).at[0].set(0)
    start_S = jnp.cumsum(size_S) - size_S
    learned_L = jnp.where(row.loss_weights > 0, row.positions, L)
    prompt_S = jnp.minimum(number(learned_L, row.segment_ids), size_S)
    said_S = size_S - prompt_S
    last = 2 * ((jnp.max(row.segment_ids) + 1) // 2)
    other_S = (segment_S + 1) % jnp.maximum(last, 1) + 1
    there_S = (segment_S >= 1) & (segment_S <= last)
    new_size_S = jnp.where(there_S, prompt_S + said_S[other_S], 0)
    end_S = jnp.cumsum(new_size_S)

    segment_L = jnp.searchsorted(end_S, place_L, side="right")  # 0 has no tokens
    real_L = segment_L <= last
    mine_L = jnp.where(real_L, segment_L, 0)
    within_L = place_L - (end_S - new_size_S)[mine_L]
    prompt_L, other_L = prompt_S[mine_L], other_S[mine_L]
    own_L = start_S[mine_L] + within_L
    said_L = start_S[other_L] + prompt_S[other_L] + within_L - prompt_L
    # The last token of a prompt reads what the completion's first one is predicted of.
    read_L = jnp.clip(jnp.where(within_L <= prompt_L, own_L, said_L), 0, L - 1)
    target_L = jnp.clip(jnp.where(within_L < prompt_L, own_L, said_L), 0, L - 1)
    changed = Batch(
        tokens=jnp.where(real_L, row.tokens[read_L], 0),
        targets=jnp.where(real_L, row.targets[target_L], 0),
        loss_weights=jnp.where(real_L, row.loss_weights[target_L], 0.0),
        segment_ids=jnp.where(real_L, segment_L, 0),
        positions=jnp.where(real_L, within_L, 0),
    )
    both_S = (said_S > 0) & (said_S[other_S] > 0)
    return changed, there_S & both_S & (last > 2)
