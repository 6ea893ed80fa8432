"""The end of a training run: the last evaluation, samples, a plot, the final screen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmx.core.workdir import write_atomic
from lmx.evaluate.compression import compressed_bits_per_byte
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import complete
from lmx.report.plots import plot_losses
from lmx.run.build import Experiment
from lmx.run.evaluator import evaluator
from lmx.run.train import SUMMARY
from lmx.tasks.syntax import first_function, parses
from lmx.training.metrics import FILE_NAME
from lmx.training.state import TrainState

BITS = "bits_per_byte"
# A function is sampled where one stands in real code, below the imports of a module.
MODULE_HEAD, FUNCTION_START = "import os\nimport sys\n\n\n", "def "


def finish(
    experiment: Experiment, state: TrainState, folder: Path, *, say: Callable
) -> dict[str, Any]:
    """Evaluates, samples, plots, prints the final screen and returns the summary."""
    config = experiment.config
    say("evaluating on the validation split")
    measured = evaluator(experiment, final=True)(state)
    main = main_score(scores(measured, "validation"))
    summary: dict[str, Any] = {
        "step": int(state.step),
        "validation": scores(measured, "validation"),
        "sources": {
            source.name: found[main]
            for source in experiment.corpus.sources
            if (found := scores(measured, source.name))
        },
        "compressors": {},
        "skipped_steps": int(state.guard.skipped),
    }
