"""Near-duplicates by MinHash and locality-sensitive hashing, vectorised in NumPy.

    signatures      texts → 128 numbers each; alike texts have many in common
    bands           signatures → keys; texts that share a key may be alike
    jaccard         signatures → how alike they are

So near-duplicates are found by grouping on keys, then by comparing within a group.
Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
Not here: the grouping itself, which is the builder's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lmx.core.errors import UserError
from lmx.curate.hashing import hash_spans, mix
from lmx.curate.words import find_words

Array = np.ndarray

LARGEST = np.uint32(0xFFFFFFFF)
BATCH_CHARACTERS = 1 << 18  # texts are read together up to this many
BLOCK = 512  # shingles times permutations that fit a core's cache
RECALL = 0.95  # of pairs exactly at the threshold


def signatures(
    texts: Sequence[str], *, permutations: int = 128, shingle: int = 5, seed: int = 0
) -> Array:
    """Returns the MinHash signature of each text, uint32 [texts, permutations].

    A text is the set of its runs of `shingle` words, whatever their case and
    punctuation (letters, where a script does not part words); a shorter text is one
    run. A text without words has the largest number everywhere, so all such are alike.
    What a text's signature is depends on nothing but the text and the settings.
    """
    draws = mix(np.arange(2 * permutations, dtype=np.uint64) + mix(np.array([seed])))
    factors = (draws[:permutations] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    offsets = (draws[permutations:] >> np.uint64(32)).astype(np.uint32)
    result = np.full((len(texts), permutations), LARGEST, np.uint32)
    for first, batch in _batches(texts):
        hashes, owners = shingles(batch, size=shingle)
        for start in range(0, len(hashes), BLOCK):
            block, rows = hashes[start : start + BLOCK], owners[start : start + BLOCK]
            edges = np.flatnonzero(np.diff(rows, prepend=-1))
            permuted = (block[:, None] ^ offsets) * factors
            least = np.minimum.reduceat(permuted, edges, axis=0)
            rows = first + rows[edges]
            result[rows] = np.minimum(result[rows], least)
    return result


def shingles(texts: Sequence[str], *, size: int) -> tuple[Array, Array]:
    """Returns a hash of every run of `size` words, and which text each is of.

    uint32 and int64 [shingles], in the order of the texts.
    """
    folded = [text.casefold() for text in texts]
    found = find_words("\n".join(folded))
    limits = np.cumsum([len(text) + 1 for text in folded])  # where the next one starts
    last = np.searchsorted(found.starts, limits)  # the first word of the next one
    first = np.concatenate([[0], last[:-1]])
    counts = np.maximum(last - first - size + 1, last > first)
    owners = np.repeat(np.arange(len(texts)), counts)
    starts = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts += first[owners]
    ends = np.minimum(starts + size, last[owners])
    hashes = hash_spans(found.hashes(), starts, ends)
    return (hashes >> np.uint64(32)).astype(np.uint32), owners


def bands(signatures: Array, *, bands: int, rows: int) -> Array:
    """Returns the keys of each signature, uint64 [texts, bands].

    Each key is a hash of `rows` numbers of the signature and of which they are: two
    texts that are alike to a share s have a key in common with probability
    1 - (1 - s^rows)^bands.
    """
    count, permutations = signatures.shape
    if bands * rows > permutations or min(bands, rows) < 1:
        raise UserError(
            f"bands={bands} of rows={rows} need {bands * rows} permutations, but there "
            f"are {permutations}; see choose_bands"
        )
    values = mix(signatures[:, : bands * rows]).reshape(count * bands, rows)
    starts = np.arange(count * bands) * rows
    keys = hash_spans(values.reshape(-1), starts, starts + rows).reshape(count, bands)
    return mix(keys + np.arange(bands, dtype=np.uint64))


def choose_bands(threshold: float, permutations: int = 128) -> tuple[int, int]:
    """Returns `(bands, rows)` that find pairs alike to `threshold`.

    The most rows, so the fewest false candidates, with which a pair that is exactly at
    the threshold shares a key with probability 0.95; candidates are then compared.
    """
    if not 0 < threshold < 1:
        raise UserError(f"threshold={threshold} must be between 0 and 1; say 0.8")
    for rows in range(permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= RECALL:
            return permutations // rows, rows
    return permutations, 1


def least_estimate(threshold: float, permutations: int = 128) -> float:
    """Returns the estimate from which a candidate counts as alike to `threshold`.

    Two standard deviations below it, so that of the pairs at the threshold one in 40 is
    lost by the estimate, not every second.
    """
    return threshold - 2 * (threshold * (1 - threshold) / permutations) ** 0.5


def jaccard(one: Array, other: Array) -> Array:
    """Returns the estimated share of runs in common, float64 [...].

    `one` and `other` are signatures [..., permutations] of shapes that broadcast. The
    estimate of a share s is off by sqrt(s (1 - s) / permutations) on average.
    """
    return np.mean(one == other, axis=-1)


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yields runs of texts of up to `BATCH_CHARACTERS`, each with its first index."""
    first = characters = 0
    for index, text in enumerate(texts):
        if characters and characters + len(text) > BATCH_CHARACTERS:
            yield first, texts[first:index]
            first, characters = index, 0
        characters += len(text)
    if first < len(texts):
        yield first, texts[first:]
