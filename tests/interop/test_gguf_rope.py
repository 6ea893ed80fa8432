"""Llama 3.1's scaling in GGUF, against the rule of its published code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.interop.gguf_rope import LENGTHS, read_rope_factors, rope_factors
from lmx.models.sizes import resolve

OPTIONS = {
    "vocab_size": 8,
    "width": 128,
    "num_layers": 1,
    "num_heads": 2,
    "rope_base": 500_000.0,
}


def published(factor, original, head_dim=64):
    """The rule: long waves are stretched, short ones not, between them it blends."""
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * OPTIONS["rope_base"] ** (i / head_dim)
        if wave < original / 4:
            factors.append(1.0)
        elif wave > original:
            factors.append(factor)
        else:
            smooth = (original / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("original", [256, 8192, 2**17])
def test_factors_are_those_of_the_published_rule_and_give_it_back(factor, original):
    scaling = {
        "rope_scaling": "llama3",
        "rope_factor": factor,
        "rope_original_length": original,
    }
    model = resolve(ModelConfig(**OPTIONS, **scaling))
    expected = published(factor, original)
    assert expected.min() == 1 < expected.max()
    np.testing.assert_allclose(rope_factors(model), expected, rtol=1e-6)
    for told in (original, None):
        assert read_rope_factors(expected, OPTIONS, told, "x") == scaling


def test_factors_of_one_are_no_scaling():
    assert read_rope_factors(np.ones(32, np.float32), OPTIONS, None, "x") == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f * np.float32(1.001),
        lambda f: f[::-1],
        lambda f: f[:-1],
        lambda f: np.full_like(f, 3),
        lambda f: f * np.nan,
        lambda f: f * 0,
    ],
)
def test_factors_that_no_scaling_gives_are_refused(change):
    with pytest.raises(UserError, match=r"not those of Llama 3\.1"):
        read_rope_factors(change(published(8.0, 8192)), OPTIONS, None, "x")


def test_lengths_are_told_apart():
    known = [published(8.0, n) for n in LENGTHS if n < 2 * math.pi * 5e5]
    for first, second in itertools.pairwise(known):
        assert np.abs(first / second - 1).max() > 1e-2
