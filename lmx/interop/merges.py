"""Merges of a vocabulary that is kept without them, only in order of its tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import AnyStr

from lmx.core.errors import DataError

LONGEST_TOKEN = 512  # characters or bytes; real ones have up to 128
MOST_MERGES = 2_000_000  # of o200k there are 450,000


def all_merges(
    tokens: Iterable[AnyStr], known: Collection[AnyStr], *, where: str
) -> list[tuple[AnyStr, AnyStr]]:
    """Returns all pairs of `known` tokens that join to one of `tokens`, in their order.

    Of several pairs for one token the longer left part comes first. Those who wrote
    such vocabularies take the leftmost in the text, for which a list has no word.

    Raises:
      DataError: a token is longer, or there are more pairs, than any model has.
    """
    merges: list[tuple[AnyStr, AnyStr]] = []
    for token in tokens:
        if len(token) > LONGEST_TOKEN:
            raise DataError(
                f"{where} has a token of length {len(token)}; {LONGEST_TOKEN} is the "
                "most that is read"
            )
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                merges.append((left, right))
        if len(merges) > MOST_MERGES:
            raise DataError(
                f"the tokens of {where} can be joined in more than {MOST_MERGES} ways; "
                "no tokenizer of a model can"
            )
    return merges
