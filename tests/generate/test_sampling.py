"""Sampling: each processor against a NumPy float64 reference, and the draw itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.generate.sampling import (
    SamplingConfig,
    apply_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    process,
    sample,
    settings,
)

V = 41


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_penalty(logits, seen, penalty):
    out = logits.copy()
    for b, v in zip(*np.nonzero(seen), strict=True):
        out[b, v] *= penalty if logits[b, v] < 0 else 1 / penalty
    return out


def reference_top_k(logits, k):
    out = np.full_like(logits, -np.inf)
    for b, row in enumerate(logits):
        keep = sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]
        out[b, keep] = row[keep]
    return out


def reference_top_p(logits, p):
    out = np.full_like(logits, -np.inf)
    for b, row in enumerate(logits):
        probability, total = softmax(row), 0.0
        for v in sorted(range(len(row)), key=lambda v: (-row[v], v)):
            out[b, v] = row[v]
            total += probability[v]
            if total >= p:
                break
    return out


def reference_min_p(logits, p):
    probability = softmax(logits)
    floor = p * probability.max(axis=-1, keepdims=True)
    return np.where(probability >= floor, logits, -np.inf)


@pytest.fixture(params=[0, 1, 2])
def logits(request):
    rng = np.random.default_rng(request.param)
    return rng.normal(0, 2, (4, V)).astype(np.float32)


def close(actual, expected):
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_equals_the_reference(logits, penalty):
    seen = np.random.default_rng(5).random((4, V)) < 0.3
    actual = penalize_repetition(logits, seen, penalty)
    close(actual, reference_penalty(logits.astype(np.float64), seen, penalty))


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 3.0])
def test_temperature_equals_the_reference(logits, temperature):
    actual = softmax(np.asarray(apply_temperature(logits, temperature), np.float64))
    close(actual, softmax(logits.astype(np.float64) / temperature))


@pytest.mark.parametrize("k", [1, 2, 17, V])
def test_top_k_equals_the_reference(logits, k):
    close(keep_top_k(logits, k), reference_top_k(logits.astype(np.float64), k))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 1.0])
def test_top_p_equals_the_reference(logits, p):
    close(keep_top_p(logits, p), reference_top_p(logits.astype(np.float64), p))


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 1.0])
def test_min_p_equals_the_reference(logits, p):
    close(keep_min_p(logits, p), reference_min_p(logits.astype(np.float64), p))


def test_processors_apply_in_the_documented_order(logits):
    config = SamplingConfig(
        temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.4
    )
    seen = np.random.default_rng(6).random((4, V)) < 0.3
    expected = reference_penalty(logits.astype(np.float64), seen, 1.4)
    expected = (expected - expected.max(axis=-1, keepdims=True)) / 0.8
    expected = reference_top_p(reference_top_k(expected, 20), 0.9)
    close(process(logits, seen, settings(config, V)), reference_min_p(expected, 0.02))


def test_values_may_differ_by_row(logits):
    k = np.array([1, 3, 5, V], np.int32)
    for row, kept in enumerate(np.isfinite(keep_top_k(logits, k)).sum(axis=-1)):
        assert kept == k[row]


def test_among_equal_logits_the_lower_ids_are_kept():
    flat = np.zeros((1, V), np.float32)
    assert np.nonzero(np.isfinite(keep_top_k(flat, 3))[0])[0].tolist() == [0, 1, 2]
    kept = np.nonzero(np.isfinite(keep_top_p(flat, 0.5))[0])[0].tolist()
    assert kept == list(range(21))


def test_extreme_logits_stay_finite_at_any_temperature():
    wide = jnp.array([[3e38, -3e38, 0.0, 1.0]], jnp.float32)
    for temperature in (1e-30, 1e-3, 1e6):
        scaled = np.asarray(apply_temperature(wide, np.float32(temperature)))
        assert not np.isnan(scaled).any()
        assert scaled.argmax() == 0


def draw(logits, config, *, rows, positions, seen=None):
    logits = jnp.asarray(logits, jnp.float32)
    seen = jnp.zeros(logits.shape, bool) if seen is None else seen
    traced = settings(config, logits.shape[-1])
    rows, positions = jnp.asarray(rows), jnp.asarray(positions)
    return np.asarray(
        jax.jit(sample)(logits, seen, traced, rows_B=rows, positions_B=positions)
    )


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=0),
        SamplingConfig(temperature=1e-5),
        SamplingConfig(temperature=1.5, top_k=1),
        SamplingConfig(temperature=1.5, top_p=1e-7),
        SamplingConfig(temperature=1.5, min_p=1.0),
    ],
)
def test_the_coldest_settings_equal_greedy(logits, config):
    chosen = draw(logits, config, rows=range(4), positions=[9] * 4)
    np.testing.assert_array_equal(chosen, logits.argmax(axis=-1))


def test_a_repetition_penalty_changes_the_greedy_choice(logits):
    logits = logits - logits.min() + 1
    seen = np.zeros((4, V), bool)
    seen[np.arange(4), logits.argmax(axis=-1)] = True
    config = SamplingConfig(temperature=0, repetition_penalty=1e6)
    chosen = draw(logits, config, rows=range(4), positions=[0] * 4, seen=seen)
    expected = np.where(seen, -np.inf, logits).argmax(axis=-1)
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(temperature=1.0), SamplingConfig(temperature=0.6, top_k=6)],
)
def test_draws_follow_the_softmax(config):
    count, size = 20_000, 12
    row = np.random.default_rng(3).normal(0, 1, size)
    logits = np.broadcast_to(row.astype(np.float32), (count, size))
    tokens = draw(
        logits, config, rows=np.arange(count) % 100, positions=np.arange(count)
    )
    kept = row if config.top_k is None else reference_top_k(row[None], config.top_k)[0]
    expected = softmax(kept / config.temperature) * count
    observed = np.bincount(tokens, minlength=size)
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    error = (observed - expected)[possible]
    chi_square = (error**2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_a_draw_depends_on_seed_row_and_position_but_not_on_neighbours():
    row = np.random.default_rng(1).normal(0, 0.1, (1, 500)).astype(np.float32)
    hot = SamplingConfig(temperature=1.0, seed=7)
    alone = draw(row, hot, rows=[3], positions=[11])[0]
    among = np.concatenate([row * 2, row, row * 3])
    assert draw(among, hot, rows=[8, 3, 1], positions=[2, 11, 11])[1] == alone
    assert draw(row, hot, rows=[4], positions=[11])[0] != alone
    assert draw(row, hot, rows=[3], positions=[12])[0] != alone
    other = SamplingConfig(temperature=1.0, seed=8)
    assert draw(row, other, rows=[3], positions=[11])[0] != alone


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"top_k": 0}, "None keeps all"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"stop": "word"}, r"write stop=\('x',\)"),
        ({"stop": ("",)}, "empty string"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "at most 4294967295"),
        ({"long_prompt": "drop"}, "'refuse' or 'cut'"),
    ],
)
def test_bad_values_are_named_with_their_range(bad, words):
    with pytest.raises(UserError, match=words):
        SamplingConfig(**bad)
