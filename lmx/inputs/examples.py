"""Examples of adaptation: token ids, each with its weight in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Example(NamedTuple):
    """One whole example; its first token is context and is never predicted."""

    ids: Sequence[int]
    weights: Sequence[int]
    """Of each id as a target: 0 is context, 1 is learned; at most 255."""
    size: int
    """UTF-8 bytes of the text that is learned: what bits per byte are per."""
