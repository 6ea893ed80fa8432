"""Metrics of choices, short answers, numbers and texts that are read."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from lmx.tasks.task import Item, Metric, Outcome, mean, ratio

PUNCTUATION = str.maketrans("", "", string.punctuation)
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def chosen(item: Item, outcome: Outcome, *, per: str = "option") -> int:
    """Returns the index of the likeliest option, the first of equals.

    `per` 'option' compares log-likelihoods as they are, 'token' and 'byte' what they
    are per token or byte of the option, so that long ones are not punished.
    """
    nats = np.asarray(outcome.nats)
    if per == "token":
        nats = nats / np.asarray(outcome.tokens)
    elif per == "byte":
        nats = nats / [max(1, len(option.encode())) for option in item.options]
    return int(np.argmax(nats))


def accuracy(name: str, *, per: str) -> Metric:
    """Returns the share of items whose likeliest option is the right one."""
    return mean(name, lambda item, out: chosen(item, out, per=per) == item.gold)


ACCURACY = accuracy("accuracy", per="option")
ACCURACY_TOKENS = accuracy("accuracy_per_token", per="token")
ACCURACY_BYTES = accuracy("accuracy_per_byte", per="byte")


def macro_f1(classes: int) -> Metric:
    """Returns the mean over classes of F1, of choices between `classes` options.

    A class that is neither right nor chosen anywhere does not count, as in
    scikit-learn.
    """

    def statistics(item: Item, outcome: Outcome) -> list[float]:
        counts = np.zeros((3, classes))  # hits, choices, right ones
        choice = chosen(item, outcome)
        counts[0, choice] += choice == item.gold
        counts[1, choice] += 1
        counts[2, item.gold] += 1
        return counts.ravel().tolist()

    def value(sums: np.ndarray) -> np.ndarray:
        hits, choices, right = np.moveaxis(
            sums.reshape(*sums.shape[:-1], 3, classes), -2, 0
        )
        total = choices + right
        f1 = 2 * hits / np.where(total == 0, 1, total)
        return f1.sum(axis=-1) / np.maximum((total > 0).sum(axis=-1), 1)

    return Metric("macro_f1", statistics, value)


def _first(item: Item, outcome: Outcome) -> float:
    """Whether the likeliest of the options with one right answer is that (MC1)."""
    among = item.facts["first"]
    best = max(among, key=lambda index: outcome.nats[index])
    return float(best == item.gold)


def _mass(item: Item, outcome: Outcome) -> float:
    """The probability of the right among the options with several (MC2)."""
    among = item.facts["many"]
    nats = np.asarray([outcome.nats[index] for index in among])
    shares = np.exp(nats - nats.max())
    right = [index in item.true for index in among]
    return float(shares[right].sum() / shares.sum())


MC1, MC2 = mean("mc1", _first), mean("mc2", _mass)


def normal_answer(text: str) -> str:
    """Returns an answer as SQuAD compares it: no case, punctuation, articles, gaps.

    Rajpurkar et al., "SQuAD: 100,000+ questions", 2016 (arXiv:1606.05250).
    """
    bare = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, reference: str) -> float:
    """Returns whether both are the same answer."""
    return float(normal_answer(answer) == normal_answer(reference))


def token_f1(answer: str, reference: str) -> float:
    """Returns F1 of the words that both have."""
    ours, right = normal_answer(answer).split(), normal_answer(reference).split()
    if not ours or not right:
        return float(ours == right)
    common = (Counter(ours) & Counter(right)).total()
    return 2 * common / (len(ours) + len(right))


def best_of(name: str, compare: Callable[[str, str], float], **options) -> Metric:
    """Returns the mean of the best comparison with any reference."""

    def score(item: Item, outcome: Outcome) -> float:
        return max(compare(outcome.texts[0], right) for right in item.answers)

    return mean(name, score, **options)


EXACT_MATCH, F1 = best_of("exact_match", exact_match), best_of("f1", token_f1)


def numbers(text: str) -> list[Decimal]:
    """Returns the numbers that a text has, in digits; commas may part thousands."""
    found = []
    for match in NUMBER.finditer(text):
        try:
            found.append(Decimal(match[0].replace(",", "")))
        except InvalidOperation:  # digits of other scripts
            continue
    return found


def right_number(item: Item, outcome: Outcome) -> float:
    """Returns whether the last number of the answer is that of the reference."""
    said, right = numbers(outcome.texts[0]), numbers(item.answers[0])
    return float(bool(said) and said[-1] == right[0])


NUMBER_ACCURACY = mean("exact_number", right_number)


def _read(item: Item, outcome: Outcome) -> tuple[float, float]:
    return -outcome.nats[0] / math.log(2), float(len(item.question.encode()))


def _per_token(item: Item, outcome: Outcome) -> tuple[float, float]:
    return -outcome.nats[0], float(outcome.tokens[0])


BITS_PER_BYTE = Metric("bits_per_byte", _read, ratio, higher=False)
PERPLEXITY = Metric(
    "token_perplexity", _per_token, lambda sums: np.exp(ratio(sums)), higher=False
)


def _stops(item: Item, outcome: Outcome) -> float:
    return float(outcome.reasons[0] == "eos")


def well_formed(text: str, names: Sequence[str] = ()) -> bool:
    """Returns whether a reply is one turn: some words, and no head of another turn."""
    heads = r"<\|[a-z_]+\|>|^\s*(?:user|assistant|system|human)\s*:"
    return bool(text.strip()) and not re.search(heads, text, re.IGNORECASE | re.M)


STOPS = mean("stops", _stops)
WELL_FORMED = mean("well_formed", lambda item, outcome: well_formed(outcome.texts[0]))
