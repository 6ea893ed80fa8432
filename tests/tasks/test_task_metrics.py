"""Metrics equal those of sacrebleu, rouge-score, scikit-learn; others by counting."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.tasks.code import pass_at
from lmx.tasks.metrics import (
    ACCURACY,
    ACCURACY_BYTES,
    exact_match,
    macro_f1,
    numbers,
    token_f1,
    well_formed,
)
from lmx.tasks.overlap import BLEU, CHRF, ROUGE_1, ROUGE_2, ROUGE_L, common_subsequence
from lmx.tasks.task import Item, Outcome

WORDS = "the cat Sat on a mat , and 3.5 dogs saw it . casa él niño 家".split()  # noqa: SIM905


def corpus(seed, *, references=1):
    """Returns texts and lists of references, some of them empty or equal."""
    drawn = random.Random(seed)

    def sentence(least):
        size = drawn.randint(least, 14)
        return " ".join(drawn.choice(WORDS) for _ in range(size))

    size = drawn.randint(1, 7)
    texts = [sentence(0) for _ in range(size)]
    rights = [[sentence(1) for _ in range(references)] for _ in range(size)]
    rights[0][0] = texts[0] or "x"
    return texts, rights


def value(metric, texts, rights):
    pairs = [
        metric.statistics(Item("", tuple(right)), Outcome(texts=(text,)))
        for text, right in zip(texts, rights, strict=True)
    ]
    return float(metric.value(np.sum(pairs, axis=0)))


@pytest.mark.parametrize("references", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_bleu_and_chrf_are_those_of_sacrebleu(seed, references):
    metrics = pytest.importorskip("sacrebleu.metrics")
    texts, rights = corpus(seed, references=references)
    columns = [list(column) for column in zip(*rights, strict=True)]
    for ours, theirs in ((BLEU, metrics.BLEU()), (CHRF, metrics.CHRF())):
        expected = theirs.corpus_score(texts, columns).score
        assert value(ours, texts, rights) == pytest.approx(expected, abs=1e-6)


def test_signatures_say_how_sacrebleu_computed():
    pytest.importorskip("sacrebleu")
    assert "tok:13a|smooth:exp" in BLEU.signature()
    assert "nc:6|nw:0" in CHRF.signature()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(20))
def test_rouge_is_that_of_rouge_score(seed):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    names = ["rouge1", "rouge2", "rougeL"]
    theirs = scorer.RougeScorer(names, use_stemmer=False)
    texts, rights = corpus(seed)
    for text, right in zip(texts, rights, strict=True):
        expected = theirs.score(right[0], text)
        for ours, name in zip((ROUGE_1, ROUGE_2, ROUGE_L), names, strict=True):
            found = value(ours, [text], [right]) / 100
            assert found == pytest.approx(expected[name].fmeasure, abs=1e-6)


@given(a=st.lists(st.sampled_from("abc")), b=st.lists(st.sampled_from("abc")))
def test_the_common_subsequence_is_that_of_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        longest = max(table[i, j + 1], table[i + 1, j])
        table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else longest
    assert common_subsequence(a, b) == table[-1, -1]


@pytest.mark.filterwarnings("ignore")
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_macro_f1_and_accuracy_are_those_of_scikit_learn(pairs):
    reference = pytest.importorskip("sklearn.metrics")
    right, chosen = zip(*pairs, strict=True)
    items = [Item("", options=("a", "b", "c", "d"), gold=gold) for gold in right]
    outcomes = [
        Outcome(nats=tuple(float(i == choice) for i in range(4))) for choice in chosen
    ]
    for metric, expected in (
        (macro_f1(4), reference.f1_score(right, chosen, average="macro")),
        (ACCURACY, reference.accuracy_score(right, chosen)),
    ):
        sums = np.sum(list(map(metric.statistics, items, outcomes)), axis=0)
        assert float(metric.value(sums)) == pytest.approx(expected, abs=1e-6)


def test_lengths_decide_only_where_they_are_divided_by():
    item = Item("", options=("a", "a much longer one"), gold=1)
    outcome = Outcome(nats=(-2.0, -9.0), tokens=(1, 5))
    assert ACCURACY.statistics(item, outcome) == (0.0, 1.0)
    assert ACCURACY_BYTES.statistics(item, outcome) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("The Beatles!", "beatles", 1, 1),
        ("John Lennon and Paul", "Paul McCartney", 0, 2 * 1 / 6),
        ("a", "the", 1, 1),
        ("", "one", 0, 0),
    ],
)
def test_answers_are_compared_as_squad_does(said, right, exact, f1):
    assert exact_match(said, right) == exact
    assert token_f1(said, right) == pytest.approx(f1)


def test_numbers_are_read_with_signs_commas_and_decimals():
    assert list(map(float, numbers("from -3 to 1,200.5 in .5"))) == [-3, 1200.5, 0.5]
    assert numbers("none") == []


@given(right=st.integers(0, 6), samples=st.integers(1, 6), k=st.integers(1, 6))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right, samples, k):
    right, k = min(right, samples), min(k, samples)
    draws = list(itertools.combinations(range(samples), k))
    expected = sum(any(i < right for i in draw) for draw in draws) / len(draws)
    assert pass_at(k, right=right, samples=samples) == pytest.approx(expected)


def test_a_reply_is_one_turn():
    assert well_formed("Paris.\nOn the Seine.")
    assert not any(map(well_formed, (" ", "Yes.\nUser: no", "<|im_start|>x")))
