"""Llama 3.1's rotary scaling in GGUF: a tensor of factors, one for each wavelength.

No key of the file says which parameters made them. Those of known models are tried, and
factors that none of them gives are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.models.positions import rotary_frequencies
from lmx.models.sizes import resolve

FACTORS = "rope_freqs.weight"
LENGTH = "rope.scaling.original_context_length"
LENGTHS = [2**n for n in range(8, 21)]  # of original contexts; Llama's is 8,192
CLOSEST = 1e-5  # relative; another length moves some factor by more than 1e-2


def rope_factors(model: Architecture) -> np.ndarray:
    """Returns how many times as long each wavelength became, float32 [H / 2]."""
    plain = dataclasses.replace(model, rope_scaling=None)
    longer = rotary_frequencies(plain, mixer="attention")
    return (longer / rotary_frequencies(model, mixer="attention")).astype(np.float32)


def read_rope_factors(
    factors: np.ndarray, options: Mapping[str, Any], length: int | None, where: str
) -> dict[str, Any]:
    """Returns the options that give these factors to the model of `options`.

    `length` is the original context where the file says it.

    Raises:
      UserError: no options of 'llama3' scaling do.
    """
    if np.all(factors == 1):
        return {}
    sound = bool(np.all(np.isfinite(factors) & (factors > 0)))
    for original in ([length] if length else LENGTHS) if sound else []:
        found = {
            "rope_scaling": "llama3",
            "rope_factor": float(factors.max(initial=1)),
            "rope_original_length": original,
        }
        config = dataclasses.replace(ModelConfig(), **{**options, **found})
        expected = rope_factors(resolve(config))
        same = expected.shape == factors.shape
        if same and np.allclose(factors, expected, rtol=CLOSEST, atol=0):
            return found
    raise UserError(
        f"{where}: the factors of {FACTORS} are not those of Llama 3.1's scaling, with "
        "which lmx could express them; import the model from its Hugging Face directory"
    )
