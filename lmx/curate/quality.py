"""A judge that is trained: logistic regression on hashed words and pairs of words.

It tells texts like the positives (say, of an encyclopedia) from texts like the
negatives (say, of the open web), as fastText classifiers do in CCNet and DCLM (Joulin
et al. 2016, arXiv:1607.01759). It learns the difference that it is shown, topic and
era included: look at what it drops. Not here: rules that need no training (`filters`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.curate.hashing import Sums
from lmx.curate.normalise import fingerprint
from lmx.curate.words import find_words

Array = np.ndarray

BUCKETS = 1 << 18
WORDS = 400  # what is read of a text: its first words
FEATURES = 2 * WORDS  # its words and pairs of words
HELD_OUT = 10  # one text of so many is held out
FORMAT = 1


class Quality(NamedTuple):
    """A trained classifier."""

    weights: Array  # float32 [BUCKETS]
    bias: float

    def score(self, texts: Sequence[str]) -> Array:
        """Returns the probability that each text is of the positives, float64 [n].

        Trained on as many positives as negatives, whatever their numbers were. A text
        without words has that of the bias.
        """
        logits = np.empty(len(texts))
        for i, text in enumerate(texts):
            found = features(text)
            total = float(self.weights[found].sum(dtype=np.float64))
            logits[i] = self.bias + total / max(len(found), 1) ** 0.5
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))

    def save(self, path: str | Path) -> None:
        """Writes the classifier to a file, NumPy's `.npz`."""
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file, format=FORMAT, weights=self.weights, bias=self.bias
            )

    @classmethod
    def load(cls, path: str | Path) -> Quality:
        """Returns the classifier in a file; `DataError` where there is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                weights, bias = file["weights"], float(file["bias"])
                known = int(file["format"]) == FORMAT and weights.shape == (BUCKETS,)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"quality: path={str(path)!r} holds no classifier ({error}); write one "
                "with lmx.curate.quality.train(…)[0].save(path)"
            ) from error
        if not known or not np.isfinite(weights).all() or not np.isfinite(bias):
            raise DataError(
                f"quality: the classifier in path={str(path)!r} is of another format, "
                f"not {FORMAT}; train it anew"
            )
        return cls(weights.astype(np.float32), bias)


def quality(*, path: str, least: float = 0.5) -> Callable[[str], str | None]:
    """Drops texts to which the classifier in the file gives less than `least`."""
    classifier = Quality.load(path)

    def judge(text: str) -> str | None:
        score = float(classifier.score([text])[0])
        return f"quality {score:.2f}, less than {least:g}" if score < least else None

    return judge


def train(
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 0.5,
    seed: int = 0,
) -> tuple[Quality, float]:
    """Returns a classifier, and its AUC on texts it has not seen.

    One text of ten is held out, by its `fingerprint`, so that no copy of it is trained
    on. Both sides weigh the same. Adagrad, deterministic given `seed`. `UserError`
    where a side is too small to hold texts out of it.
    """
    seen, labels, held = [], [], {True: list[str](), False: list[str]()}
    for side, texts in ((True, positives), (False, negatives)):
        for text in texts:
            if int.from_bytes(fingerprint(text)[:8], "big") % HELD_OUT:
                seen.append(text)
                labels.append(side)
            else:
                held[side].append(text)
        count = labels.count(side)
        if not count or not held[side]:
            what = "positives" if side else "negatives"
            raise UserError(
                f"{what}: {len(texts)} texts are too few to train on and to hold out "
                f"one of {HELD_OUT}; give at least 100"
            )
    ids, weights = _padded(seen)
    classifier = _fit(
        ids,
        weights,
        np.array(labels, np.float32),
        epochs=epochs,
        batch_size=min(batch_size, len(seen)),
        learning_rate=learning_rate,
        seed=seed,
    )
    return classifier, auc(classifier.score(held[True]), classifier.score(held[False]))


def auc(positives: Array, negatives: Array) -> float:
    """Returns the probability that a positive scores above a negative; ties are half.

    The area under the receiver operating characteristic, by ranks.
    """
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def features(text: str) -> Array:
    """Returns which buckets the words and pairs of words fall in, int64, sorted."""
    found = find_words(text[: 40 * WORDS].casefold())
    words = Sums.of(found.hashes()[:WORDS])
    hashes = np.concatenate([words.windows(1), words.windows(2)])
    return np.unique(hashes & np.uint64(BUCKETS - 1)).astype(np.int64)


def _padded(texts: Sequence[str]) -> tuple[Array, Array]:
    """Returns the features of all texts, int32 [n, FEATURES], and their weights."""
    ids = np.zeros((len(texts), FEATURES), np.int32)
    weights = np.zeros((len(texts), FEATURES), np.float32)
    for row, text in enumerate(texts):
        found = features(text)
        ids[row, : len(found)] = found
        weights[row, : len(found)] = max(len(found), 1) ** -0.5
    return ids, weights


def _fit(
    ids: Array,
    values: Array,
    labels: Array,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Quality:
    """Returns the classifier of least balanced cross-entropy, by minibatches."""
    import jax
    import jax.numpy as jnp
    import optax

    share = labels.mean()
    importance = jnp.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    optimizer = optax.adagrad(learning_rate)
    params = (jnp.zeros(BUCKETS), jnp.zeros(()))
    data = (jnp.array(ids), jnp.array(values), jnp.array(labels), importance)

    def loss(params, batch):
        weights, bias = params
        ids_BF, values_BF, labels_B, importance_B = batch
        logits_B = (weights[ids_BF] * values_BF).sum(axis=1) + bias
        losses_B = optax.sigmoid_binary_cross_entropy(logits_B, labels_B)
        return (losses_B * importance_B).mean()

    def step(carry, rows):
        params, state = carry
        batch = jax.tree.map(lambda array: array[rows], data)
        gradients = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def epoch(carry, key):
        steps = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: steps * batch_size]
        return jax.lax.scan(step, carry, order.reshape(steps, batch_size))[0]

    carry = (params, optimizer.init(params))
    for key in jax.random.split(jax.random.key(seed), epochs):
        carry = epoch(carry, key)
    (weights, bias), _ = jax.device_get(carry)
    return Quality(np.asarray(weights, np.float32), float(bias))
