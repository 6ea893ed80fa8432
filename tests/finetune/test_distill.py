"""Distillation: divergences beside float64 NumPy; a model that nears its teacher."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from lmx.core.config import freeze
from lmx.core.errors import DataError, UserError
from lmx.finetune.divergence import Scores, divergence, divergence_of_best
from lmx.run.build import build
from lmx.run.start import adopted
from lmx.run.train import train

T, V, D, E = 5, 12, 4, 6
rng = np.random.default_rng(0)
STUDENT = [2 * rng.normal(size=s).astype(np.float32) for s in ((T, D), (V, D))]
TEACHER = [2 * rng.normal(size=s).astype(np.float32) for s in ((T, E), (V, E))]
HOW = {"temperature": 1.5, "form": "xla"}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def reference(hidden, head, *, direction="forward", cap=None, best=None):
    """Returns KL of each token, float64, from whole logits."""

    def log_probabilities(hidden, head):
        z = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
        z = z if cap is None else cap * np.tanh(z / cap)
        return z / HOW["temperature"]

    p, q = log_probabilities(*TEACHER), log_softmax(log_probabilities(hidden, head))
    if best is not None:
        kept = np.argsort(-p, axis=-1)[:, :best]
        p, q = (np.take_along_axis(x, kept, axis=-1) for x in (p, q))
    p = log_softmax(p)
    if direction == "reverse":
        p, q = q, p
    return (np.exp(p) * (p - q)).sum(-1)


def slopes(function, *arrays, step=1e-5):
    """Returns d Σ function / d each array by central differences."""
    arrays = [np.asarray(a, np.float64) for a in arrays]
    found = []
    for array in arrays:
        slope = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            kept, sides = array[at], []
            for sign in (1, -1):
                array[at] = kept + sign * step
                sides.append(function(*arrays).sum())
            array[at] = kept
            slope[at] = (sides[0] - sides[1]) / (2 * step)
        found.append(slope)
    return found


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({}, 1),
        ({"cap": 3.0}, 3),
        ({"direction": "reverse"}, 3),
        ({"best": 5}, 3),
        ({"best": V}, 1),
    ],
)
def test_divergences_and_their_gradients_are_those_of_whole_logits(options, chunks):
    best, cap = options.get("best"), options.get("cap")

    def ours(hidden, head):
        student, teacher = Scores(hidden, head, cap), Scores(*TEACHER, cap)
        if best is not None:
            return divergence_of_best(
                student, teacher, count=best, chunks=chunks, **HOW
            )
        way = options.get("direction", "forward")
        return divergence(student, teacher, direction=way, chunks=chunks, **HOW)

    wanted = reference(*STUDENT, **options)
    np.testing.assert_allclose(jax.jit(ours)(*STUDENT), wanted, rtol=1e-6, atol=1e-6)
    total = jax.jit(jax.grad(lambda *a: ours(*a).sum(), argnums=(0, 1)))
    expected = slopes(lambda *a: reference(*a, **options), *STUDENT)
    for found, slope in zip(total(*STUDENT), expected, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=3e-6)


def distill_config(small_config, words, base, **objective):
    config = small_config(words)
    config.objective.name = "distill"
    config.objective.teacher = str(base)
    for key, value in objective.items():
        config.objective[key] = value
    return config


def test_a_student_nears_its_teacher_and_resumes(small_config, words, base, tmp_path):
    config = distill_config(small_config, words, base, label_weight=0.25)
    config.model.width = 8  # another shape than the teacher's
    config.steps = 4
    train(freeze(config), tmp_path / "run", say=str)
    config.steps = 8
    summary = train(freeze(config), tmp_path / "run", say=str)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    apart = [json.loads(line)["train/kl"] for line in lines]
    assert apart[-1] < 0.8 * apart[0]
    assert apart[4] < apart[0]
    assert summary["validation"]["kl"] < apart[0]
    assert summary["validation"]["bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "objective.temperature=0.0 must be above 0"),
        ({"label_weight": 1.0}, "objective.label_weight=1.0 must be at least 0 and"),
        ({"top_k": 1}, r"objective.top_k=1 must lie in 2\.\.259"),
        ({"top_k": 4, "divergence": "reverse"}, "top_k=4 leaves the teacher without"),
        ({"beta": 0.1}, "objective.beta=0.1 is not read by"),
        ({"teacher": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_distilled_is_named(options, said, small_config, words, base):
    config = distill_config(small_config, words, base, **options)
    with pytest.raises(UserError, match=said):
        build(adopted(freeze(config)), report=str)


def test_a_teacher_of_other_tokens_is_refused(small_config, words, base):
    config = distill_config(small_config, words, base)
    config.data.tokenizer = "char"
    with pytest.raises(DataError, match=r"teacher=.* has another tokenizer .*generate"):
        build(adopted(freeze(config)), report=str)
    config.data.tokenizer, config.model.vocab_size = "byte", 300
    with pytest.raises(UserError, match=r"vocabulary of 259 and this model one of 300"):
        build(adopted(freeze(config)), report=str)
