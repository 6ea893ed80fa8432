"""Prepared data as training and evaluation see it: tokens per source, and batches.

How text became tokens is in `pipeline` and in what built a store; a `Corpus` only
reads them.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core import errors
from lmx.core.schema import DataConfig
from lmx.data.batches import Batches
from lmx.data.built import TEMPLATE, SourceStores, tokens_digest
from lmx.data.mixture import Mixture
from lmx.data.recipe import plan
from lmx.data.remote import read_bytes
from lmx.data.rows import Rows
from lmx.data.stages import RowLengths
from lmx.inputs.tokenizers import Tokenizer

MOST_LEFT_OUT = 0.1  # of all pairs, for being longer than a row


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The tokenizer, the tokens of each source in both splits, and their counts."""

    directory: Path
    tokenizer: Tokenizer
    sources: tuple[SourceStores, ...]
    """In the order of their names."""
    summary: dict[str, Any]
    """Documents, bytes, tokens per split; bytes per token; what was left out."""
    config: DataConfig
    context_length: int
    seed: int
    steps: int
    """Of the training: what the stages of a mixture are shares of."""

    @property
    def digest(self) -> str:
        """Returns what tells the training tokens from others."""
        return tokens_digest(self.sources)

    @property
    def learned_whole(self) -> bool:
        """Whether all of the validation text has a loss, as examples' has not."""
        return all(source.validation.weights is None for source in self.sources)

    def validation_text(self) -> bytes:
        """Returns the UTF-8 text of the validation documents, joined."""
        return b"".join(_read(source.validation_text) for source in self.sources)

    @property
    def chat_template(self) -> str | None:
        """The template that a store's conversations were encoded with."""
        file = self.directory / TEMPLATE
        return _read(file).decode() if file.exists() else None

    def train_batches(self) -> Batches:
        """Returns the training batches that the config asks for."""
        rows = self._train_rows
        self._check_left_out(rows)
        if not len(rows):
            raise errors.DataError("there are no tokens; set data.path to more text")
        return Batches(
            rows,
            plan(self.config, rows.counts, seed=self.seed, steps=self.steps),
            batch_size=self.config.batch_size,
            prefetch=self.config.prefetch_batches,
            workers=self.config.workers,
            lengths=self.row_lengths,
        )

    @functools.cached_property
    def row_lengths(self) -> RowLengths:
        """How long the rows of each training step are."""
        return RowLengths(
            self.config, context_length=self.context_length, steps=self.steps
        )

    @functools.cached_property
    def _train_rows(self) -> Rows:
        return self._rows({source.name: source.train for source in self.sources})

    @functools.cached_property
    def validation_rows(self) -> Rows:
        """The rows of the validation split, source after source."""
        return self._rows({source.name: source.validation for source in self.sources})

    def validation_ids(self, count: int | None) -> list[np.ndarray]:
        """Returns the row ids of `count` validation batches; None, or enough, is all.

        All come in stored order. Some are in an order of the seed: neighbouring rows
        are of the same documents, these are a fair sample.
        """
        rows, size = self.validation_rows, self.config.batch_size
        if count is None or count * size >= len(rows):
            return rows.ids_in_order(size)
        sample = Mixture({"all": len(rows)}, seed=self.seed, shuffle="epoch")
        return np.split(sample.rows(0, count * size), count)

    def _check_left_out(self, rows: Rows) -> None:
        """Raises a `UserError` where so many pairs do not fit that others are learned.

        Those that are left out are the long ones: many of them are another data set.
        """
        groups = sum(s.train.num_documents // s.train.group for s in self.sources)
        left_out = rows.waste.left_out
        if left_out > MOST_LEFT_OUT * groups:
            raise errors.UserError(
                f"{left_out:,} of {groups:,} pairs are longer than a row of "
                f"model.context_length={self.context_length}, more than "
                f"{MOST_LEFT_OUT:.0%}; raise it (a row holds both sides), or build "
                "the store with filters={'length': …}"
            )

    def _rows(self, stores: dict[str, Any]) -> Rows:
        return Rows(
            stores, context_length=self.context_length, packing=self.config.packing
        )


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise errors.DataError(
            f"{path} cannot be read ({error.strerror}); prepare or build the data anew"
        ) from error
