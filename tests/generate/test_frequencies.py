"""What is drawn is distributed as the exact softmax says: a χ² test."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.generate.sampling import SamplingConfig, sample, settings

V, DRAWS = 40, 20_000
CONFIGS = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.5},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.3, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
}


def exact(logits, config):
    """Returns the probabilities in float64, cut as the options say in their order."""
    p = np.exp((logits - logits.max()) / config.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if config.top_k is not None:
        p[order[config.top_k :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= config.top_p]] = 0
    p /= p.sum()
    p[p < config.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_those_of_the_exact_softmax(name):
    config = SamplingConfig(**CONFIGS[name], seed=11)
    logits = np.random.default_rng(3).normal(scale=1.5, size=V)
    expected = exact(logits, config)
    rows = jnp.arange(DRAWS, dtype=jnp.int32)

    @jax.jit
    def draw(rows):
        wide = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, V))
        return sample(
            wide,
            jnp.zeros((DRAWS, V), bool),
            settings(config, V),
            rows_B=rows,
            positions_B=jnp.full(DRAWS, 5, jnp.int32),
        )

    counts = np.bincount(np.asarray(draw(rows)), minlength=V)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # Rare tokens together, as the test wants five of each at least.
    often = expected * DRAWS >= 5
    few = possible & ~often
    seen, due = [*counts[often]], [*expected[often] * DRAWS]
    if few.any():
        seen, due = [*seen, counts[few].sum()], [*due, expected[few].sum() * DRAWS]
    statistic = sum((s - d) ** 2 / d for s, d in zip(seen, due, strict=True))
    # Wilson and Hilferty's normal form of χ²: above 4 is one chance in 30,000.
    freedom = len(seen) - 1
    spread = 2 / (9 * freedom)
    assert ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5 < 4


def test_the_test_notices_a_wrong_temperature():
    config = SamplingConfig(temperature=1.0)
    logits = np.random.default_rng(3).normal(scale=1.5, size=V)
    right, wrong = exact(logits, config), exact(logits, SamplingConfig(temperature=1.1))
    assert DRAWS * ((right - wrong) ** 2 / right).sum() > 2 * V
