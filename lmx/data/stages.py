"""What holds from a step on: entries such as '256', '80%: code=1' or '640: 512'.

What an entry says is another's business: weights are read in `recipe`, lengths of rows
here. An entry holds up to the start of the next.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from lmx.core import errors
from lmx.core.schema import DataConfig

_ENTRY = re.compile(
    r"\s*(?:(?P<start>[\d.]+)(?P<share>%?)\s*:)?(?P<what>.*)", re.DOTALL
)
_NUMBER = re.compile(r"(?=.{1,20}$)(\d+\.?\d*|\.\d+)", re.ASCII)
_EXAMPLE = "write it as in data.row_lengths=('128', '25%: 256', '60%: 512')"


class Entry(NamedTuple):
    """A text of a config, the step that it holds from, and what it says then."""

    text: str
    start: int
    what: str


def entries(texts: Sequence[str], *, key: str, steps: int, example: str) -> list[Entry]:
    """Returns the entries of the option `key`, in a training of so many steps.

    Raises a `UserError`, which ends with `example`, for a start that is no step, one
    before that of the entry above, and one that no step comes to.
    """
    found = []
    for text in texts:
        match = _ENTRY.fullmatch(text)
        assert match is not None  # it matches everything
        start = number(match["start"] or "0", text, example=example)
        if match["share"]:
            start = start * steps / 100
        elif start.denominator != 1:
            raise errors.UserError(
                f"{key} has {text!r}: {match['start']} is not a whole step; {example}"
            )
        if start >= max(1, steps):
            raise errors.UserError(
                f"{key} has {text!r}, which never comes: there are {steps:,} steps; "
                "write its start as a share of them ('80%: …'), raise steps, or leave "
                "it out"
            )
        found.append(Entry(text, int(start), match["what"]))
    starts = [entry.start for entry in found]
    if starts != sorted(starts):
        raise errors.UserError(
            f"the entries of {key} start at steps {starts}; put them in order"
        )
    return found


def number(text: str, whole: str, *, example: str) -> Fraction:
    """Returns the number, 0 or more, that a text spells, exactly."""
    if not _NUMBER.fullmatch(text):
        raise errors.UserError(
            f"{text!r} in {whole!r} must be a number of 0 or more; {example}"
        )
    return Fraction(text)


class RowLengths:
    """Into how long pieces the rows of each step are cut (`data.row_lengths`).

    The rows of a step stay what they are, and so does what has been seen: only how far
    a token looks back changes, and with it the time of a step. Short rows first are
    faster (Press et al. 2021, "Shortformer") and steadier at high learning rates (Li
    et al. 2022, "The stability-efficiency dilemma").
    """

    def __init__(self, config: DataConfig, *, context_length: int, steps: int):
        """Raises a `UserError` for lengths that rows cannot be cut to.

        The last length must be `context_length`: it is what evaluation and generation
        use, and positions past the last rows would be untrained, or long forgotten.
        """
        found = entries(
            config.row_lengths, key="data.row_lengths", steps=steps, example=_EXAMPLE
        )
        if found and config.packing != "concat":
            raise errors.UserError(
                f"data.row_lengths would cut the documents that data.packing="
                f"{config.packing!r} keeps whole; set data.packing='concat', or "
                "data.row_lengths=()"
            )
        self.stages = [(entry.start, _length(entry, context_length)) for entry in found]
        """From which step on, how many tokens."""
        if not found or found[0].start > 0:
            self.stages.insert(0, (0, context_length))
        if self.stages[-1][1] != context_length:
            raise errors.UserError(
                f"data.row_lengths ends with {found[-1].text!r}, and "
                f"model.context_length is {context_length}: a model that is used at a "
                "length must be trained at it last; add an entry such as "
                f"'80%: {context_length}', or set model.context_length="
                f"{self.stages[-1][1]}"
            )

    def at(self, step: int) -> int:
        """Returns the length of the rows of a step, counted from 0."""
        return next(length for start, length in self.stages[::-1] if start <= step)


def _length(entry: Entry, context_length: int) -> int:
    length = number(entry.what.strip(), entry.text, example=_EXAMPLE)
    if length.denominator != 1 or not length or context_length % length:
        raise errors.UserError(
            f"data.row_lengths has {entry.text!r}: rows of model.context_length="
            f"{context_length} cannot be cut into pieces of {entry.what.strip()}; "
            "take a number that divides it"
        )
    return int(length)
