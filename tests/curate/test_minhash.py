from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.curate import minhash
from lmx.curate.minhash import (
    bands,
    choose_bands,
    jaccard,
    least_estimate,
    shingles,
    signatures,
)
from lmx.curate.words import words

VOCABULARY = [f"word{i}" for i in range(3000)]
TEXTS = st.lists(st.text(alphabet="aAbß \n,.中é\u0301", max_size=30), max_size=6)


def runs(text: str, size: int) -> list[tuple[str, ...]]:
    listed = words(text.casefold())
    if 0 < len(listed) < size:
        return [tuple(listed)]
    return [tuple(listed[i : i + size]) for i in range(len(listed) - size + 1)]


def exact(one: str, other: str, size: int = 5) -> float:
    """The Jaccard index of two sets."""
    a, b = set(runs(one, size)), set(runs(other, size))
    return len(a & b) / len(a | b)


def variant(text: str, changes: int, rng: random.Random) -> str:
    listed = text.split()
    for _ in range(changes):
        listed[rng.randrange(len(listed))] = rng.choice(VOCABULARY)
    return " ".join(listed)


def document(rng: random.Random, low: int = 60, high: int = 300) -> str:
    return " ".join(rng.choices(VOCABULARY, k=rng.randint(low, high)))


@given(TEXTS, st.integers(1, 4))
def test_shingles_are_the_runs_of_words_of_each_text(texts, size):
    """Reference: tuples of words, text by text."""
    hashes, owners = shingles(texts, size=size)
    expected = [(i, run) for i, text in enumerate(texts) for run in runs(text, size)]
    assert owners.tolist() == [i for i, _ in expected]
    assert len(set(hashes.tolist())) == len({run for _, run in expected})
    pairs = zip(hashes.tolist(), expected, strict=True)
    assert len({(h, run) for h, (_, run) in pairs}) == len({r for _, r in expected})


@given(TEXTS, st.integers(0, 5))
def test_a_signature_does_not_depend_on_the_other_texts(texts, seed):
    together = signatures(texts, permutations=8, seed=seed)
    for i, text in enumerate(texts):
        assert (signatures([text], permutations=8, seed=seed)[0] == together[i]).all()


def test_nor_on_how_texts_are_read_together(monkeypatch):
    rng = random.Random(1)
    texts = [document(rng) for _ in range(12)] + ["", "!"]
    whole = signatures(texts)
    monkeypatch.setattr(minhash, "BATCH_CHARACTERS", 3000)
    monkeypatch.setattr(minhash, "BLOCK", 7)
    assert (signatures(texts) == whole).all()
    assert (whole[-2:] == 0xFFFFFFFF).all()


def test_estimates_are_as_good_as_theory_says():
    """Reference: the Jaccard index of sets of tuples, and a binomial's deviation."""
    rng = random.Random(2)
    scores, errors = [], []
    for _ in range(150):
        text = document(rng)
        other = variant(text, rng.randint(1, 12), rng)
        share = exact(text, other)
        estimate = float(jaccard(*signatures([text, other])))
        errors.append(estimate - share)
        scores.append((estimate - share) / max(share * (1 - share) / 128, 1e-4) ** 0.5)
    assert abs(np.mean(errors)) < 0.01
    assert 0.7 < np.std(scores) < 1.2


def near_copy(text: str, rng: random.Random) -> str:
    """Returns a text whose set of runs is alike to 0.8 or more, but not the same."""
    while True:
        other = variant(text, rng.randint(1, len(text.split()) // 40 + 1), rng)
        if 0.8 <= exact(text, other) < 1:
            return other


def test_planted_near_duplicates_are_found_and_nothing_else():
    """Recall and precision of 0.95 at a threshold of 0.8, against exact sets."""
    rng = random.Random(3)
    texts = [document(rng) for _ in range(300)]
    texts += [near_copy(text, rng) for text in texts[:200]]
    texts += [variant(text, len(text.split()) // 8, rng) for text in texts[200:300]]
    planted = {(i, i + 300) for i in range(200)}
    signed = signatures(texts)
    count, rows = choose_bands(0.8)
    keys = bands(signed, bands=count, rows=rows)
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(keys.tolist()):
        for key in row:
            groups.setdefault(key, []).append(index)
    candidates = {(a, b) for g in groups.values() for a in g for b in g if a < b}
    least = least_estimate(0.8)
    found = {(a, b) for a, b in candidates if jaccard(signed[a], signed[b]) >= least}
    assert len(planted & found) >= 0.95 * len(planted)
    assert len(planted & found) >= 0.95 * len(found)
    assert len(candidates) < 2 * len(found)  # the keys leave little to compare


def test_case_punctuation_and_line_breaks_do_not_count():
    one = "The quick, brown fox — it jumped! Over the lazy dog."
    other = "the QUICK brown\nfox it jumped over the lazy dog"
    assert jaccard(*signatures([one, other])) == 1.0


def test_chinese_is_compared_by_characters():
    text = (
        "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待"
    )
    assert 0.5 < jaccard(*signatures([text, text.replace("良心", "善心")])) < 1.0


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("permutations", [64, 128, 256])
def test_bands_find_pairs_at_the_threshold(threshold, permutations):
    """Reference: the probability that one band agrees, drawn at random."""
    count, rows = choose_bands(threshold, permutations)
    assert count * rows <= permutations
    rng = np.random.default_rng(4)
    agree = rng.random((4000, count, rows)) < threshold
    assert agree.all(axis=2).any(axis=1).mean() > 0.94
    tighter = rng.random((4000, permutations // (rows + 1), rows + 1)) < threshold
    assert tighter.all(axis=2).any(axis=1).mean() < 0.97  # no more rows would do


def test_keys_are_equal_exactly_where_bands_are():
    signed = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [3, 4, 1, 2]], np.uint32)
    keys = bands(signed, bands=2, rows=2)
    assert keys[0, 0] == keys[1, 0]
    assert len(set(keys.ravel().tolist())) == 5
    with pytest.raises(UserError, match="6 permutations"):
        bands(signed, bands=3, rows=2)
    with pytest.raises(UserError, match="between 0 and 1"):
        choose_bands(1.0)
