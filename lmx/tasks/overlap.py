"""Metrics of texts against references: BLEU, chrF, ROUGE.

BLEU's tokens and both signatures are sacrebleu's (extra `eval`). Each metric is made of
counts that add up over texts, so a corpus score and its bootstrap need one pass.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmx.core.errors import UserError
from lmx.tasks.task import Item, Metric, Outcome, mean

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2
WORD = re.compile(r"[a-z0-9]+")


def bleu(tokenize: str = "13a") -> Metric:
    """Returns corpus BLEU with exponential smoothing, 0 to 100, as sacrebleu does.

    Papineni et al. 2002; Post, "A call for clarity in reporting BLEU scores", 2018.
    `tokenize` is one of sacrebleu's tokenizers.
    """

    def statistics(item: Item, outcome: Outcome) -> list[float]:
        scorer = _sacrebleu("BLEU", tokenize=tokenize)
        found = scorer.corpus_score([outcome.texts[0]], [[r] for r in item.answers])
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    def signature() -> str:
        scorer = _sacrebleu("BLEU", tokenize=tokenize)
        scorer.corpus_score(["a"], [["a"]])
        return str(scorer.get_signature())

    return Metric("bleu", statistics, bleu_of, signature=signature)


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """Returns BLEU of sums [..., 10]: hits, n-grams by order, lengths of both."""
    hits, totals = sums[..., :BLEU_ORDER], sums[..., BLEU_ORDER : 2 * BLEU_ORDER]
    ours, theirs = sums[..., -2], sums[..., -1]
    # An order without a hit counts as a half, a quarter, … of one (smoothing 'exp').
    missed = np.cumsum((hits == 0) & (totals > 0), axis=-1)
    smoothed = np.where(hits == 0, 0.5**missed, hits)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / totals).mean(axis=-1)
        penalty = np.where(ours < theirs, 1 - theirs / ours, 0)
        score = 100 * np.exp(logs + penalty)
    sound = (totals > 0).all(axis=-1) & hits.any(axis=-1)
    return np.where(sound, score, 0.0)


def chrf() -> Metric:
    """Returns corpus chrF2, 0 to 100: F of character n-grams without white space.

    Popović, "chrF: character n-gram F-score", 2015.
    """

    def statistics(item: Item, outcome: Outcome) -> list[float]:
        ours = _character_ngrams(outcome.texts[0])
        counts = [_shared(ours, _character_ngrams(right)) for right in item.answers]
        return max(counts, key=lambda found: float(chrf_of(np.asarray(found))))

    def signature() -> str:
        scorer = _sacrebleu("CHRF")
        scorer.corpus_score(["a"], [["a"]])
        return str(scorer.get_signature())

    return Metric("chrf", statistics, chrf_of, signature=signature)


def chrf_of(sums: np.ndarray) -> np.ndarray:
    """Returns chrF2 of sums [..., 18]: ours, theirs, shared for each order in turn."""
    by_order = sums.reshape(*sums.shape[:-1], CHRF_ORDER, 3)
    ours, theirs, shared = (by_order[..., i] for i in range(3))
    known = (ours > 0) & (theirs > 0)
    orders = np.maximum(known.sum(axis=-1), 1)

    def mean_of(totals):
        parts = np.where(known, shared / np.maximum(totals, 1), 0)
        return parts.sum(axis=-1) / orders

    precision, recall = mean_of(ours), mean_of(theirs)
    factor = CHRF_BETA**2
    below = factor * precision + recall
    above = (1 + factor) * precision * recall
    return 100 * above / np.where(below == 0, 1, below)


def _character_ngrams(text: str) -> list[Counter[str]]:
    bare = "".join(text.split())
    return [
        Counter(bare[i : i + n] for i in range(len(bare) - n + 1))
        for n in range(1, CHRF_ORDER + 1)
    ]


def _shared(ours: list[Counter[str]], theirs: list[Counter[str]]) -> list[float]:
    counts: list[float] = []
    for mine, right in zip(ours, theirs, strict=True):
        total = mine.total() if right else 0  # as sacrebleu counts them
        counts += [total, right.total(), (mine & right).total()]
    return counts


@functools.cache
def _sacrebleu(kind: str, **options: Any) -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise UserError(
            f"{kind} needs sacrebleu ({error}); install the extra: pip install "
            "'lmx[eval]'"
        ) from error
    return getattr(sacrebleu.metrics, kind)(**options)


def words(text: str) -> list[str]:
    """Returns the words of a text as ROUGE takes them: Latin letters and digits."""
    return WORD.findall(text.lower())


def rouge_n(text: str, reference: str, order: int) -> float:
    """Returns F1 of the n-grams of words that both have (Lin 2004)."""
    ours, right = _word_ngrams(text, order), _word_ngrams(reference, order)
    return _f1((ours & right).total(), ours.total(), right.total())


def rouge_l(text: str, reference: str) -> float:
    """Returns F1 of the longest common subsequence of words."""
    ours, right = words(text), words(reference)
    return _f1(common_subsequence(ours, right), len(ours), len(right))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest sequence that both have, gaps allowed.

    One machine word holds a row of the table (Hyyrö 2004); Python's are of any length.
    """
    where: dict[str, int] = {}
    for index, word in enumerate(first):
        where[word] = where.get(word, 0) | 1 << index
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        matches = row & where.get(word, 0)
        row = (row + matches | row - matches) & whole
    return len(first) - row.bit_count()


def _word_ngrams(text: str, order: int) -> Counter[tuple[str, ...]]:
    found = words(text)
    return Counter(tuple(found[i : i + order]) for i in range(len(found) - order + 1))


def _f1(shared: int, ours: int, right: int) -> float:
    return 2 * shared / (ours + right) if shared else 0.0


def _rouge(name: str, compare) -> Metric:
    def score(item: Item, outcome: Outcome) -> float:
        return 100 * max(compare(outcome.texts[0], right) for right in item.answers)

    return mean(name, score, signature=lambda: "F1, no stemming, [a-z0-9]+")


ROUGE_1 = _rouge("rouge1", functools.partial(rouge_n, order=1))
ROUGE_2 = _rouge("rouge2", functools.partial(rouge_n, order=2))
ROUGE_L = _rouge("rougeL", rouge_l)
BLEU, CHRF = bleu(), chrf()
