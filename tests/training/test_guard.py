from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.training.guard import HISTORY, GuardState, admit, init_guard, select

NAN, INF = float("nan"), float("inf")


def run(losses, norms=None, *, sigmas=None, guard=None):
    """Feeds losses (and norms, else ones) through the compiled guard."""
    losses = jnp.asarray(losses, jnp.float32)
    norms = jnp.ones_like(losses) if norms is None else jnp.asarray(norms, jnp.float32)

    def body(guard, step):
        loss, norm = step
        accept, guard = admit(guard, loss=loss, grad_norm=norm, spike_sigmas=sigmas)
        return guard, accept

    scan = jax.jit(lambda guard, steps: jax.lax.scan(body, guard, steps))
    guard, accepted = scan(init_guard() if guard is None else guard, (losses, norms))
    return np.asarray(accepted), guard


def noise(steps: int, level: float = 3.0, spread: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(0)
    return (level + spread * random.uniform(-1, 1, steps)).astype(np.float32)


def assert_same_bits(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0)])
def test_one_nonfinite_step_is_refused_and_leaves_no_trace_in_the_history(loss, norm):
    _, before = run(noise(5))
    accepted, after = run([loss], [norm], guard=before)
    assert not accepted[0]
    assert (after.skipped, after.spikes, after.consecutive) == (1, 0, 1)
    assert_same_bits(
        (before.losses, before.grad_norms, before.recorded),
        (after.losses, after.grad_norms, after.recorded),
    )


def test_nonfinite_steps_in_a_row_are_counted_and_a_finite_one_ends_the_row():
    tolerated = 3
    _, guard = run([1.0] + [NAN] * (tolerated + 1))
    assert guard.consecutive == tolerated + 1
    accepted, guard = run([1.0, INF], guard=guard)
    assert list(accepted) == [True, False]
    assert guard.consecutive == 1
    assert guard.skipped == tolerated + 2


def test_history_holds_the_last_finite_steps_only():
    losses = noise(HISTORY + 40)
    losses[[3, 60, 130]] = NAN, INF, -INF
    _, guard = run(losses, sigmas=6.0)
    finite = losses[np.isfinite(losses)]
    assert guard.recorded == len(finite)
    assert sorted(np.asarray(guard.losses)) == sorted(finite[-HISTORY:])


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_spike_is_refused_only_above_the_limit_and_only_once_history_is_full(which):
    def steps(values):
        flat = np.ones(len(values), np.float32)
        return (values, flat) if which == "loss" else (flat, values)

    history = noise(HISTORY)
    limit = history.mean() + 6 * history.std()
    early, _ = run(*steps(np.append(history[:-1], 100.0)), sigmas=6.0)
    assert early.all()
    _, guard = run(*steps(history), sigmas=6.0)
    for value, expected in ((limit - 0.01, True), (limit + 0.01, False), (-9.0, True)):
        accepted, after = run(*steps(np.array([value])), sigmas=6.0, guard=guard)
        assert accepted[0] == expected
        assert after.spikes == after.skipped == (not expected)
        assert after.consecutive == 0
    assert run(*steps(np.array([100.0])), guard=guard)[0].all()


@pytest.mark.parametrize("sigmas", [1.0, 3.0, 6.0, 10.0])
@pytest.mark.parametrize("level", [3.5, 1e4, 1e15])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_shift_of_level_is_accepted_after_a_bounded_number_of_steps(
    sigmas, level, spread
):
    _, guard = run(noise(300, spread=spread), sigmas=sigmas)
    accepted, after = run(np.full(200, level), sigmas=sigmas, guard=guard)
    assert accepted.any()
    refused = int(np.argmax(accepted))
    assert refused <= HISTORY / (1 + sigmas**2) + 1
    assert accepted[refused:].all()
    assert after.consecutive == 0


def test_a_wild_value_does_not_poison_the_guard():
    losses = noise(3 * HISTORY)
    losses[140] = 3e38
    accepted, guard = run(np.append(losses, 100.0), sigmas=6.0)
    assert not accepted[140]
    assert not accepted[-1]
    assert accepted.sum() == len(losses) - 1
    assert np.isfinite(guard.losses).all()


def test_a_refused_step_changes_nothing_bit_for_bit_and_an_accepted_one_all():
    old = {
        "kernel": jnp.array([1.0, -0.0, 1e-40, NAN], jnp.float32),
        "half": jnp.array([0.1], jnp.bfloat16),
        "count": jnp.array(3, jnp.int32),
        "key": jax.random.key_data(jax.random.key(1)),
    }
    new = {
        "kernel": jnp.full(4, NAN, jnp.float32),
        "half": jnp.array([INF], jnp.bfloat16),
        "count": jnp.array(4, jnp.int32),
        "key": jax.random.key_data(jax.random.key(2)),
    }
    choose = jax.jit(select)
    assert_same_bits(choose(jnp.array(False), new, old), old)
    assert_same_bits(choose(jnp.array(True), new, old), new)


def test_select_refuses_leaves_that_would_change_their_dtype():
    with pytest.raises(AssertionError):
        select(jnp.array(True), jnp.zeros(2), jnp.zeros(2, jnp.bfloat16))


def test_the_guard_keeps_its_types_and_owns_its_buffers():
    before = init_guard()
    _, after = run([1.0, NAN, 2.0], sigmas=6.0)
    shapes = [(x.shape, x.dtype) for x in before]
    assert [(x.shape, x.dtype) for x in after] == shapes
    assert isinstance(after, GuardState)
    pointers = [x.unsafe_buffer_pointer() for x in before]
    assert len(set(pointers)) == len(pointers)
