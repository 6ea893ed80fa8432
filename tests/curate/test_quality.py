from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import DataError, UserError
from lmx.curate.filters import make_filter
from lmx.curate.quality import BUCKETS, Quality, auc, features, train
from lmx.curate.words import words

COMMON = [f"common{i}" for i in range(200)]
GOOD = [f"learned{i}" for i in range(20)]
BAD = [f"clickbait{i}" for i in range(20)]
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=12)


def corpus(marks: list[str], count: int, seed: int) -> list[str]:
    """Texts of common words, of which one in eight is of a kind."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(marks if i % 8 == 0 else COMMON) for i in range(40))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def trained() -> tuple[Quality, float]:
    return train(corpus(GOOD, 150, 1), corpus(BAD, 300, 2))


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_in_order(positives, negatives):
    """Reference: every pair."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert auc(np.array(positives), np.array(negatives)) == pytest.approx(
        sum(pairs) / len(pairs)
    )


def test_kinds_of_text_are_told_apart_where_they_were_not_seen(trained):
    """Reference: it is known of which kind each text is."""
    classifier, held_out = trained
    good, bad = corpus(GOOD, 60, 3), corpus(BAD, 60, 4)
    scores = classifier.score(good), classifier.score(bad)
    assert held_out > 0.98
    assert auc(*scores) > 0.98
    assert np.mean(scores[0] > 0.5) > 0.9  # though the negatives were twice as many
    assert np.mean(scores[1] < 0.5) > 0.9


def test_texts_that_differ_in_nothing_are_not_told_apart():
    _, held_out = train(corpus(COMMON, 300, 5), corpus(COMMON, 300, 6), epochs=1)
    assert 0.3 < held_out < 0.7


def test_training_twice_gives_the_same_weights(trained):
    again, held_out = train(corpus(GOOD, 150, 1), corpus(BAD, 300, 2))
    assert held_out == trained[1]
    assert (again.weights == trained[0].weights).all()


def test_a_score_is_the_logistic_of_the_weights_of_a_text(trained):
    """Reference: the sum written out."""
    classifier, _ = trained
    text = "learned1 common2 learned1 common2 clickbait3"
    ids = features(text)
    assert len(ids) == 3 + 3  # words, and pairs: l1 c2, c2 l1, c2 b3
    assert len(features(" ".join(COMMON))) <= 2 * len(words(" ".join(COMMON))) - 1
    logit = classifier.bias + sum(classifier.weights[i] for i in ids) / 6**0.5
    assert classifier.score([text])[0] == pytest.approx(1 / (1 + np.exp(-logit)))
    empty = classifier.score([""])[0]
    assert empty == pytest.approx(1 / (1 + np.exp(-classifier.bias)))


def test_a_saved_classifier_is_a_filter(trained, tmp_path):
    path = tmp_path / "quality.npz"
    trained[0].save(path)
    loaded = Quality.load(path)
    texts = corpus(GOOD, 5, 7) + corpus(BAD, 5, 8)
    assert (loaded.score(texts) == trained[0].score(texts)).all()
    judge = make_filter("quality", {"path": str(path), "least": 0.5})
    reasons = [judge(text) for text in texts]
    assert reasons[:5] == [None] * 5
    assert all(reason.startswith("quality 0.") for reason in reasons[5:])


def test_files_that_hold_no_classifier_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no classifier"):
        make_filter("quality", {"path": str(tmp_path / "none.npz")})
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="holds no classifier"):
        Quality.load(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", weights=np.array([{}]), bias=0.0, format=1)
    with pytest.raises(DataError, match="holds no classifier"):
        Quality.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(BUCKETS), bias=0.0, format=2)
    with pytest.raises(DataError, match="another format"):
        Quality.load(tmp_path / "other.npz")
    with pytest.raises(UserError, match="positives: 1 texts are too few"):
        train(["one"], corpus(BAD, 50, 9))
