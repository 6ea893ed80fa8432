from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.schema import OptimConfig
from lmx.training.schedules import SCHEDULES, make_schedule

PEAK, WARMUP, STEPS, FINAL, DECAY = 3e-3, 10, 110, 0.1, 0.25


def config(schedule: str, **changes: object) -> OptimConfig:
    options = {
        "schedule": schedule,
        "learning_rate": PEAK,
        "warmup_steps": WARMUP,
        "final_fraction": FINAL,
        "decay_fraction": DECAY,
    }
    return OptimConfig(**{**options, **changes})


def closed_form(schedule: str, step: int) -> float:
    """The definition of each schedule, in plain Python."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    step = min(step, STEPS)
    done = (step - WARMUP) / (STEPS - WARMUP)
    if schedule == "constant":
        return PEAK
    if schedule == "linear":
        return PEAK * (1 - (1 - FINAL) * done)
    if schedule == "cosine":
        return PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2)
    assert schedule == "wsd"
    length = round(DECAY * STEPS)
    decayed = max(0, step - (STEPS - length)) / length
    return PEAK * (1 - (1 - FINAL) * math.sqrt(decayed))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_its_closed_form_at_every_step_and_past_the_end(name):
    steps = range(STEPS + 40)
    expected = [closed_form(name, step) for step in steps]
    schedule = jax.jit(jax.vmap(make_schedule(config(name), STEPS)))
    np.testing.assert_allclose(
        schedule(jnp.arange(STEPS + 40)), expected, rtol=2e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_starts_at_zero_peaks_after_warmup_and_ends_where_asked(name):
    schedule = make_schedule(config(name), STEPS)
    end = PEAK if name == "constant" else PEAK * FINAL
    assert schedule(0) == 0.0
    assert schedule(WARMUP) == np.float32(PEAK)
    np.testing.assert_allclose(schedule(STEPS), end, rtol=1e-5)
    assert schedule(STEPS) == schedule(10 * STEPS)
    assert schedule(7).dtype == jnp.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(name):
    assert make_schedule(config(name, warmup_steps=0), STEPS)(0) == np.float32(PEAK)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, WARMUP - 1, WARMUP, WARMUP + 1])
def test_a_run_shorter_than_its_warmup_warms_up_all_along(name, steps):
    schedule = make_schedule(config(name), steps)
    rates = [float(schedule(step)) for step in range(steps + 3)]
    assert all(math.isfinite(rate) for rate in rates)
    assert rates[0] == 0.0
    warmup = min(WARMUP, steps)
    np.testing.assert_allclose(rates[warmup], PEAK, rtol=1e-6)
    assert np.all(np.diff(rates[: warmup + 1]) > 0)


def test_the_decay_of_wsd_gives_way_to_the_warmup():
    schedule = make_schedule(config("wsd", warmup_steps=60, decay_fraction=0.9), 100)
    np.testing.assert_allclose(schedule(60), PEAK, rtol=1e-6)
    np.testing.assert_allclose(schedule(100), PEAK * FINAL, rtol=1e-5)


def test_another_peak_scales_the_whole_schedule():
    twice = make_schedule(config("cosine"), STEPS, 2 * PEAK)
    once = make_schedule(config("cosine"), STEPS)
    for step in (0, 5, 50, 200):
        np.testing.assert_allclose(twice(step), 2 * once(step), rtol=1e-5)


def test_an_unknown_schedule_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_schedule(config("cosin"), STEPS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warmup_steps": -1}, "optim.warmup_steps is -1"),
        ({"final_fraction": 1.5}, "optim.final_fraction is 1.5"),
        ({"decay_fraction": 0.0}, "optim.decay_fraction is 0.0"),
    ],
)
def test_an_option_out_of_its_range_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        make_schedule(config("wsd", **changes), STEPS)
    with pytest.raises(UserError, match="steps is 0"):
        make_schedule(config("wsd"), 0)
