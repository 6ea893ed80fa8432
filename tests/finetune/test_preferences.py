"""Preference objectives: values, gradients, and that packing changes nothing.

The references are the formulas of the papers in float64 NumPy, and each completion run
alone through the decoder, with whole logits.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig
from lmx.finetune.objectives import OBJECTIVES
from lmx.finetune.preferences import Completions, Preference
from lmx.finetune.reward import rewards
from lmx.finetune.segments import with_completions_of_others
from lmx.inputs.batch import Batch
from lmx.models.decoder import REWARD_HEAD, Decoder, abstract_params, head_logits
from lmx.models.sizes import resolve
from lmx.training.objective import Compared, check_options
from lmx.training.step import eval_step, summed_gradient

VOCAB, LENGTH = 24, 24
MODEL = resolve(
    ModelConfig(
        vocab_size=VOCAB,
        context_length=LENGTH,
        width=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        compute_dtype="float32",
        layer_loop="scan",
        reward_head="last",
    )
)
PREFERENCES = [n for n, o in OBJECTIVES.items() if issubclass(o, Preference)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_odds(mean):
    return mean - np.log1p(-np.exp(mean))


def reference_loss(name, policy, start, tokens, baseline, config):
    """Returns a pair's loss from sums of log-probabilities, float64: the papers'."""
    beta = config.beta or (2.0 if name == "simpo" else 0.1)
    (pc, pr), (sc, sr), (nc, nr) = policy, start, tokens
    if name == "dpo":
        h, e = beta * ((pc - sc) - (pr - sr)), config.label_smoothing
        return -(1 - e) * np.log(sigmoid(h)) - e * np.log(sigmoid(-h))
    if name == "ipo":
        return ((pc - sc) / nc - (pr - sr) / nr - 1 / (2 * beta)) ** 2
    if name == "orpo":
        ratio = log_odds(pc / nc) - log_odds(pr / nr)
        return -pc / nc - beta * np.log(sigmoid(ratio))
    if name == "simpo":
        margin = 1.0 if config.margin is None else config.margin
        return -np.log(sigmoid(beta * (pc / nc - pr / nr) - margin))
    chosen = 1 - sigmoid(beta * (pc - sc - baseline))
    rejected = 1 - sigmoid(beta * (baseline - (pr - sr)))
    return (chosen + rejected) / 2


def reference_gradient(*args):
    """Returns d loss / d (log p of chosen, of rejected) by central differences."""
    name, policy, *rest = args
    step = 1e-5
    found = []
    for i in range(2):
        moved = [np.array(policy, np.float64) for _ in range(2)]
        moved[0][i] += step
        moved[1][i] -= step
        up, down = (reference_loss(name, p, *rest) for p in moved)
        found.append((up - down) / (2 * step))
    return np.array(found)


@pytest.mark.parametrize("name", PREFERENCES)
def test_losses_and_gradients_are_those_of_the_papers(name):
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 9, (2, 3, 2)).astype(np.float64)
    policy = -tokens * rng.uniform(0.2, 4, (2, 3, 2))
    start = policy + rng.normal(size=(2, 3, 2))
    smooth = 0.1 if name == "dpo" else 0.0
    config = ObjectiveConfig(name=name, beta=0.3, label_smoothing=smooth)
    objective = OBJECTIVES[name](MODEL, config)
    f32 = [x.astype(np.float32) for x in (policy, start, tokens)]

    def total(logprobs):
        sides = Completions(logprobs, f32[2]), Completions(f32[1], f32[2])
        return objective.judge(*sides, 0.25).losses.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(f32[0])
    rows = list(np.ndindex(2, 3))
    policy, start, tokens = (x.astype(np.float64) for x in f32)
    given = [(name, policy[i], start[i], tokens[i], 0.25, config) for i in rows]
    np.testing.assert_allclose(
        value, sum(reference_loss(*g) for g in given), rtol=1e-6, atol=1e-6
    )
    expected = np.array([reference_gradient(*g) for g in given]).reshape(2, 3, 2)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=1e-6)


@dataclasses.dataclass
class Completion:
    ids: np.ndarray
    prompt: int
    """Tokens that are not learned."""


@cache
def some_pairs():
    """Pairs of completions of a prompt, of many lengths."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(6):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 4))
        sides = [rng.integers(0, VOCAB, rng.integers(1, 5)) for _ in range(2)]
        found.append([Completion(np.r_[prompt, s], len(prompt)) for s in sides])
    return found


def pack(rows, length=LENGTH):
    """Returns rows of pairs as a batch."""
    batch = Batch(
        *(np.zeros((len(rows), length), t) for t in ("i4", "i4", "f4", "i4", "i4"))
    )
    for r, row in enumerate(rows):
        at = 0
        for number, side in enumerate([s for pair in row for s in pair], 1):
            n = len(side.ids) - 1
            batch.tokens[r, at : at + n] = side.ids[:-1]
            batch.targets[r, at : at + n] = side.ids[1:]
            batch.loss_weights[r, at + side.prompt - 1 : at + n] = 1
            batch.segment_ids[r, at : at + n] = number
            batch.positions[r, at : at + n] = np.arange(n)
            at += n
    return batch


@cache
def weights(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
        nn.meta.unbox(abstract_params(MODEL)),
    )


@jax.jit
def logprobs(params, ids_NL, first_N, size_N):
    """Returns [N], the sum from token `first` on, of texts that each have a row."""
    hidden = Decoder(MODEL).apply({"params": params}, ids_NL[:, :-1])
    scores = jax.nn.log_softmax(head_logits(MODEL, params, hidden))
    scores = jnp.take_along_axis(scores, ids_NL[:, 1:, None], axis=-1)[..., 0]
    place = 1 + jnp.arange(ids_NL.shape[1] - 1)[None]
    said = (place >= first_N[:, None]) & (place < size_N[:, None])
    return jnp.where(said, scores, 0).sum(axis=1)


def rows_of(completions):
    """Returns what `logprobs` takes; padding on the right changes nothing before it."""
    ids = np.zeros((12, 12), np.int32)
    for row, one in zip(ids, completions, strict=False):
        row[: len(one.ids)] = one.ids
    first = np.array([one.prompt for one in completions], np.int32)
    size = np.array([len(one.ids) for one in completions], np.int32)
    return ids, *(np.pad(x, (0, 12 - len(x))) for x in (first, size))


def scores_of(seed, completions):
    found = logprobs(weights(seed), *rows_of(completions))
    return np.asarray(found, np.float64)[: len(completions)]


ROWS = [some_pairs()[:2], some_pairs()[2:3], [], some_pairs()[3:]]


def with_completion(mine, other):
    ids = np.r_[mine.ids[: mine.prompt], other.ids[other.prompt :]]
    return Completion(ids, mine.prompt)


def cycled(row):
    """Returns a row in which each prompt has the next pair's completion."""
    others = [row[(k + 1) % len(row)] for k in range(len(row))]
    return [
        [with_completion(*sides) for sides in zip(pair, other, strict=True)]
        for pair, other in zip(row, others, strict=True)
    ]


def baseline_of(row):
    """Returns KTO's baseline of a row."""
    if len(row) < 2:
        return 0.0
    changed = [side for pair in cycled(row) for side in pair]
    return max(0.0, float(np.mean(scores_of(1, changed) - scores_of(2, changed))))


def alone(name, config):
    """Returns Σ loss and its gradient of all pairs, each completion run by itself."""
    sides = [side for row in ROWS for pair in row for side in pair]
    policy, start = (scores_of(seed, sides).reshape(-1, 2) for seed in (1, 2))
    tokens = np.array([len(s.ids) - s.prompt for s in sides], float).reshape(-1, 2)
    bases = [baseline_of(row) if name == "kto" else 0.0 for row in ROWS for _ in row]
    given = [
        (name, *pair, config) for pair in zip(policy, start, tokens, bases, strict=True)
    ]
    value = sum(reference_loss(*one) for one in given)
    slopes = np.array([reference_gradient(*one) for one in given]).ravel()
    _, back = jax.vjp(lambda params: logprobs(params, *rows_of(sides)), weights(1))
    return value, back(jnp.asarray(slopes, jnp.float32))[0]


@pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])  # sums, means, a baseline
def test_packed_and_accumulated_pairs_are_those_alone(name):
    config = ObjectiveConfig(name=name, vocab_chunks=3)
    objective = OBJECTIVES[name](MODEL, config)

    def run(params, start, batch):
        def whole(params, rows):
            compared = Compared(params, start)
            return objective(compared if objective.against else params, rows)

        return summed_gradient(whole, params, batch, pieces=2)

    gradient, sums = jax.jit(run)(weights(1), weights(2), pack(ROWS))
    value, expected = alone(name, config)
    assert sums["weight"] == len(some_pairs())
    np.testing.assert_allclose(sums["value"], value, rtol=2e-6)
    for found, wanted in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=3e-6 * max(scale, 1.0))


def test_the_start_has_no_margin_and_no_distance():
    objective = OBJECTIVES["dpo"](MODEL, ObjectiveConfig(name="dpo"))
    score = jax.jit(partial(eval_step, objective=objective))
    sums = score(Compared(weights(1), weights(1)), pack(ROWS))
    assert sums["weight"].tolist() == [2, 1, 0, 3]
    assert not sums["margin"].any()
    assert not sums["kl"].any()
    np.testing.assert_allclose(sums["loss"], np.log(2) * sums["weight"], rtol=1e-6)


def test_completions_are_changed_for_those_of_the_next_pair():
    batch = pack(ROWS)
    changed, real = jax.jit(with_completions_of_others)(batch)
    wanted = [cycled(row) for row in ROWS]
    expected = pack(wanted)
    np.testing.assert_array_equal(changed.segment_ids, expected.segment_ids)
    here = expected.segment_ids > 0
    for found, field in zip(changed, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found)[here], field[here])
    np.testing.assert_array_equal(
        changed.loss_weights.sum(axis=1), batch.loss_weights.sum(axis=1)
    )
    assert real.sum(axis=1).tolist() == [4, 0, 0, 6]


def test_rewards_of_pairs_are_those_of_their_texts():
    objective = OBJECTIVES["reward"](MODEL, ObjectiveConfig(name="reward", margin=0.3))
    texts = [s.ids[:-1].tolist() for row in ROWS for pair in row for s in pair]
    found = rewards(MODEL, weights(1), texts).astype(np.float64).reshape(-1, 2)
    loss = -np.log(sigmoid(found[:, 0] - found[:, 1] - 0.3))
    losses = jax.jit(objective)(weights(1), pack(ROWS))
    there = np.asarray(losses.weights) > 0
    np.testing.assert_allclose(losses.values[there], loss, rtol=2e-6)
    np.testing.assert_allclose(
        losses.metrics["chosen_reward"][there], found[:, 0], rtol=1e-5, atol=1e-6
    )


def test_the_gradient_of_rewards_is_that_of_the_choice():
    objective = OBJECTIVES["reward"](MODEL, ObjectiveConfig(name="reward"))
    gradient, _ = jax.jit(partial(summed_gradient, objective))(weights(1), pack(ROWS))
    sides = [side for row in ROWS for pair in row for side in pair]
    ids, _, sizes = rows_of(sides)
    states = jax.jit(Decoder(MODEL).apply)({"params": weights(1)}, ids)
    states = np.asarray(states, np.float64)[np.arange(len(sides)), sizes - 2]
    states = states.reshape(-1, 2, MODEL.width)
    apart = states[:, 0] - states[:, 1]
    head = np.array(weights(1)[REWARD_HEAD], np.float64)
    expected = -(sigmoid(-apart @ head)[:, None] * apart).sum(axis=0)
    np.testing.assert_allclose(gradient[REWARD_HEAD], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpo", {"beta": 0.0}, r"objective.beta=0.0 must be above 0.*None is 0.1"),
        ("simpo", {"beta": -1.0}, r"objective.beta=-1.0 must be above 0.*None is 2"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing=0.5.*below 0.5"),
    ],
)
def test_impossible_options_are_named(name, options, said):
    with pytest.raises(UserError, match=said):
        OBJECTIVES[name](MODEL, ObjectiveConfig(name=name, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("next_token", {"beta": 0.1}),
        ("dpo", {"margin": 1.0}),
        ("ipo", {"label_smoothing": 0.1}),
        ("kto", {"z_loss": 1e-4}),
        ("reward", {"beta": 0.2}),
    ],
)
def test_an_option_that_is_not_read_is_refused(name, options):
    (option,) = options
    with pytest.raises(UserError, match=f"objective.{option}=.* is not read by"):
        check_options(OBJECTIVES[name], ObjectiveConfig(name=name, **options))


def test_rewards_of_an_untrained_or_another_model_are_refused():
    params = dict(weights(1))
    params[REWARD_HEAD] = 0 * params[REWARD_HEAD]
    with pytest.raises(UserError, match="never trained: all its rewards are 0"):
        rewards(MODEL, params, [[1, 2]])
    del params[REWARD_HEAD]
    with pytest.raises(UserError, match="gives no rewards"):
        rewards(MODEL, params, [[1, 2]])
