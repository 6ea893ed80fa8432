"""Validation loss and what else an objective tells, of the split and each source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def evaluator(experiment, *, final: bool = False) -> Callable[[Any], dict[str, float]]:
    """Returns state → validation metrics; `final` takes the batches of the end.

    Tags are `eval/validation/…`, and `eval/<source>/…` where there are several; a
    source of which no row is in the sample is left out. Where a loss is that of a token
    there are bits per byte; that of a pair has none.
    """
    from lmx.evaluate.perplexity import perplexity, row_sums

    corpus, evals = experiment.corpus, experiment.config.evals
    ids = corpus.validation_ids(evals.final_batches if final else evals.batches)
    rows = corpus.validation_rows
    sources = rows.source_of(np.concatenate(ids))
    splits = [source.validation for source in corpus.sources]

    def evaluate(state) -> dict[str, float]:
        batches = (experiment.partition.place_batch(rows.batch(part)) for part in ids)
        score, params = experiment.eval_function, experiment.joined(state)
        sums = row_sums(score, params, batches)
        weights = sums.pop("weight")
        sets = {"validation": (sources >= 0, splits)}
        if len(splits) > 1:
            sets |= {
                name: (sources == index, splits[index : index + 1])
                for index, name in enumerate(rows.names)
            }
        found: dict[str, float] = {}
        for name, (mine, stores) in sets.items():
            total = weights[mine].sum()
            if not total:
                continue
            for metric, values in sums.items():
                found[f"eval/{name}/{metric}"] = float(values[mine].sum() / total)
            if experiment.objective.group > 1:
                continue
            result = perplexity(
                sums["loss"][mine],
                weights[mine],
                bytes_per_target=sum(store.source_bytes for store in stores)
                / sum(store.num_targets for store in stores),
            )
            found[f"eval/{name}/loss"] = result.loss
            found[f"eval/{name}/bpb"] = result.bits_per_byte
        return found

    return evaluate
