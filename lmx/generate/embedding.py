"""From texts to vectors: the final hidden states of a model, pooled.

It speaks token ids only, as the rest of this package. Rows are sorted by length and
padded to powers of two, so few programs are compiled, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.errors import UserError, pick
from lmx.core.model_schema import Architecture
from lmx.models.decoder import Decoder
from lmx.models.moe import dropless

SMALLEST_ROW = 16  # tokens; shorter ones are padded to it
MOST_ROWS, MOST_TOKENS = 64, 8192  # of one call


def _mean(hidden_BLD, real_BL):
    total_BD = jnp.sum(hidden_BLD * real_BL[:, :, None], axis=1)
    return total_BD / jnp.maximum(real_BL.sum(axis=1), 1)[:, None]


def _first(hidden_BLD, real_BL):
    return hidden_BLD[:, 0]


def _last(hidden_BLD, real_BL):
    last_B = jnp.maximum(real_BL.sum(axis=1).astype(jnp.int32) - 1, 0)
    return jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]


POOLINGS = {"mean": _mean, "first": _first, "last": _last}


def embed(
    config: Architecture,
    params: Any,
    rows: Sequence[Sequence[int]],
    *,
    pooling: str | None = None,
) -> np.ndarray:
    """Returns float32 [n, D]: each row of token ids as one vector.

    `pooling` is one of `model.pooling`, by default that of `config`: the mean of the
    final hidden states, the first or the last, with '_unit' scaled to length 1.

    Raises:
      UserError: a row is empty or longer than the context.
    """
    name, _, unit = (pooling or config.pooling).partition("_")
    run = partial(_vectors, config, pick(POOLINGS, name, "pooling"), unit == "unit")
    if unit not in ("", "unit"):
        raise UserError(f"unknown pooling {pooling!r}; known: mean, mean_unit, …")
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= config.context_length:
            raise UserError(
                f"text {i + 1} has {len(row)} tokens; the model reads 1 to "
                f"{config.context_length} (model.context_length): split it"
            )
    found = np.zeros((len(rows), config.width), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        longest = len(rows[order[0]])
        length = min(max(SMALLEST_ROW, _power_of_two(longest)), config.context_length)
        count = min(MOST_ROWS, max(1, MOST_TOKENS // length))
        part = [i for i in order[:count] if len(rows[i]) <= length]
        order = order[len(part) :]
        tokens_BL = np.zeros((_power_of_two(len(part)), length), np.int32)
        segments_BL = np.zeros_like(tokens_BL)
        for place, i in enumerate(part):
            tokens_BL[place, : len(rows[i])] = rows[i]
            segments_BL[place, : len(rows[i])] = 1
        found[part] = run(params, tokens_BL, segments_BL)[: len(part)]
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _vectors(config, pool, unit: bool, params, tokens_BL, segments_BL):
    hidden_BLD: Any = Decoder(dropless(config)).apply(
        {"params": params},
        tokens_BL,
        segment_ids=segments_BL,
        prefix=segments_BL != 0 if config.attention == "prefix" else None,
    )
    real_BL = (segments_BL != 0).astype(jnp.float32)
    pooled_BD = pool(hidden_BLD.astype(jnp.float32), real_BL)
    if not unit:
        return pooled_BD
    length_B1 = jnp.linalg.norm(pooled_BD, axis=-1, keepdims=True)
    return pooled_BD / jnp.maximum(length_B1, 1e-12)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
