"""Loss and bits per byte over rows of validation batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np


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


def row_sums(
    score: Callable[[Any, Any], dict], params: Any, batches: Iterable[Any]
) -> dict[str, np.ndarray]:
    """Returns the sums over each row of the batches in turn, float64 [R] by name.

    `score` is the compiled `(params, batch) → {"weight": Σ, "loss": Σ, …}`, where the
    weight is the number of tokens, or of pairs.
    """
    # Sums stay on the device until the end: nothing waits between batches.
    sums = [score(params, batch) for batch in batches]
    fetched = jax.device_get(sums)
    return {
        name: np.concatenate([np.asarray(s[name], np.float64) for s in fetched])
        for name in fetched[0]
    }


def perplexity(
    nats: np.ndarray, tokens: np.ndarray, *, bytes_per_target: float
) -> Perplexity:
    """Returns the loss over rows of which the sums are given.

    `bytes_per_target` is the length of the whole text over the number of its targets:
    over all rows bits per byte is then exact, over some it is an estimate.
    """
    loss = float(nats.sum()) / max(float(tokens.sum()), 1.0)
    bits = loss / math.log(2) / bytes_per_target
    return Perplexity(loss, bits, round(tokens.sum()))
