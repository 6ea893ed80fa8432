"""How many tokens of each source, and of each licence, training has seen.

A checkpoint's facts carry the counts, so that what a model was made of can be told
from the model. They are of tokens with a loss, those of skipped steps too, and sum to
the tokens trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx.core import errors
from lmx.data.corpus import Corpus
from lmx.inputs.batch import Batch


class Seen:
    """Counts up with each batch; `facts` is what a checkpoint keeps of it."""

    def __init__(self, corpus: Corpus):
        self._batches = corpus.train_batches()
        self._licences = [source.licence for source in corpus.sources]
        self._rows = np.zeros(len(corpus.sources), np.int64)
        self._tokens = np.zeros(len(corpus.sources), np.int64)

    def resume(self, step: int, facts: Mapping[str, Any] | None) -> None:
        """Goes on from the facts of a checkpoint; without any, batches are counted.

        Raises a `UserError` where the rows of the steps before `step` are not those
        that the checkpoint was trained on: within a source their order is fixed, so
        as many rows are the same rows.
        """
        if facts is None:  # a checkpoint of before there were counts
            for number, batch in enumerate(self._batches.iterate(0, step)):
                self.add(number, batch)
            return
        names = self._batches.rows.names
        expected = self._batches.mixture.counts(step * self._batches.batch_size)
        found = {name: about["rows"] for name, about in facts["sources"].items()}
        if found != expected:
            name = next(name for name in names if found.get(name) != expected[name])
            raise errors.UserError(
                f"in {step:,} steps the checkpoint saw {found.get(name, 0):,} rows of "
                f"{name!r}, and by this config it would have seen {expected[name]:,}: "
                "weights changed, or stages given as shares of the steps moved; keep "
                f"data.mixture as it was up to there and change it after ('{step}: "
                "…'), or choose another --workdir"
            )
        self._rows = np.array([found[name] for name in names], np.int64)
        tokens = [facts["sources"][name]["tokens"] for name in names]
        self._tokens = np.array(tokens, np.int64)

    def add(self, step: int, batch: Batch) -> int:
        """Counts the batch of a step and returns its tokens with a loss."""
        ids = self._batches.ids_at(step, 0, self._batches.batch_size)
        sources = self._batches.rows.source_of(ids)
        size = len(self._rows)
        # Rows that were cut into pieces are counted whole.
        weight_BL = np.asarray(batch.loss_weights).reshape(len(ids), -1)
        tokens_B = np.count_nonzero(weight_BL, axis=1)
        self._rows += np.bincount(sources, minlength=size)
        self._tokens += np.bincount(sources, tokens_B, size).astype(np.int64)
        return int(tokens_B.sum())

    @property
    def facts(self) -> dict[str, Any]:
        """The counts so far, JSON values."""
        licences: dict[str, int] = {}
        sources: dict[str, Any] = {}
        each = zip(
            self._batches.rows.names,
            self._licences,
            self._rows.tolist(),
            self._tokens.tolist(),
            strict=True,
        )
        for name, licence, rows, tokens in each:
            sources[name] = {"licence": licence, "rows": rows, "tokens": tokens}
            licences[licence] = licences.get(licence, 0) + tokens
        total = int(self._tokens.sum())
        return {"tokens": total, "sources": sources, "licences": licences}
