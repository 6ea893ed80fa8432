"""The examples of a source as tokens; what cannot be one is counted, and bounded.

Only here are the tokenizer and its chat template known, so a conversation that the
template refuses, or whose reply no token begins with, is first met here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from lmx.core.errors import DataError, UserError
from lmx.curate.clean import Tally
from lmx.inputs.example import Encoder, Example

REASON = "no example"


class Examples:
    """Encodes the records of one source and counts those that cannot be."""

    def __init__(self, encode: Encoder):
        """Takes the encoder of the source's format."""
        self._encode = encode
        self._tally = Tally()
        self._seen = self._made = 0

    def of(
        self, records: Iterable[tuple[str, str, str | None]]
    ) -> Iterator[tuple[str, str, Example]]:
        """Yields (name, text, example) of (name, text, JSON of the fields).

        The text of a record comes once, with the first of its examples.
        """
        for name, text, fields in records:
            assert fields is not None
            self._seen += 1
            try:
                examples = self._encode(json.loads(fields))
            except (DataError, UserError) as error:
                self._tally.drop(REASON, name, why=str(error), text=text)
                continue
            self._made += 1
            for example in examples:
                yield name, text, example
                text = ""

    def settle(self, name: str, tally: dict[str, Any], *, bad_records: float) -> None:
        """Adds what was left out to the tally of the source called `name`.

        Raises a `DataError` where it was too much, or all.
        """
        dropped = self._tally.to_json()["dropped"]
        tally["dropped"].update(dropped)
        if not dropped or (
            self._made and self._seen - self._made <= bad_records * self._seen
        ):
            return
        first = "; ".join(
            f"{e['name']}: {e['why']}" for e in dropped[REASON]["examples"]
        )
        raise DataError(
            f"source {name}: {self._seen - self._made:,} of {self._seen:,} records "
            f"cannot be examples, more than bad_records={bad_records:.2%}, such as "
            f"{first}. Mend them or the chat template, or raise bad_records."
        )
