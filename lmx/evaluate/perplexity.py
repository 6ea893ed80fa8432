"""Loss and bits per byte over validation batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax


class Perplexity(NamedTuple):
    """A mean over tokens.

    Attributes:
      loss: nats per token.
      bits_per_byte: the same, per byte of the text that the tokens encode.
      tokens: how many were predicted.
    """

    loss: float
    bits_per_byte: float
    tokens: int


def perplexity(
    score: Callable[[Any, Any], dict],
    params: Any,
    batches: Iterable[Any],
    *,
    bytes_per_target: float,
    limit: int | None = None,
) -> Perplexity:
    """Returns the loss of `params` over the first `limit` batches (None is all).

    `score` is the compiled `(params, batch) → {"loss": Σ nats, "weight": Σ tokens}`.
    `bytes_per_target` is the length of the whole text over the number of its targets:
    over all batches bits per byte is then exact, over some it is an estimate.
    """
    # Sums stay on the device until the end: nothing waits between batches.
    sums = [score(params, batch) for batch in itertools.islice(batches, limit)]
    fetched = jax.device_get(sums)
    nats = sum(float(s["loss"]) for s in fetched)
    tokens = sum(float(s["weight"]) for s in fetched)
    loss = nats / max(tokens, 1.0)
    return Perplexity(loss, loss / math.log(2) / bytes_per_target, round(tokens))
