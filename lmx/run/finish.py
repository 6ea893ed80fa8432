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
    if config.evals.compressors and not (
        main == BITS and experiment.corpus.learned_whole
    ):
        say(
            "compressors are left out: they would see all of the validation examples, "
            "and the model's score is of what is learned of them"
        )
    elif config.evals.compressors:
        text = experiment.corpus.validation_text()
        summary["validation"]["bytes"] = len(text)
        for name in config.evals.compressors:
            label, bits = compressed_bits_per_byte(name, text)
            summary["compressors"][label] = round(bits, 4)
    write_samples(experiment, experiment.merged(state), summary)
    write_atomic(folder / "samples.txt", samples_text(summary))
    plot_losses(folder / FILE_NAME, folder / "loss.png", title=folder.name)
    write_atomic(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    say(final_screen(summary, folder))
    return summary


def scores(measured: dict[str, float], name: str) -> dict[str, float]:
    """Returns what was measured of a set, rounded, by the names of a summary."""
    prefix = f"eval/{name}/"
    found = {
        tag.removeprefix(prefix): round(value, 4)
        for tag, value in measured.items()
        if tag.startswith(prefix)
    }
    return {BITS if metric == "bpb" else metric: x for metric, x in found.items()}


def main_score(validation: dict[str, Any]) -> str:
    """Returns the score that a run is known by: of text its bits, of pairs the loss."""
    return BITS if BITS in validation else "loss"


def write_samples(experiment: Experiment, params: Any, summary: dict) -> None:
    """Adds samples for the fixed prompts, and the share of functions that parse."""
    evals, tokenizer = experiment.config.evals, experiment.corpus.tokenizer
    generator = Generator(
        experiment.model,
        params,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
    )
    sampling = SamplingConfig(
        temperature=evals.temperature,
        # Prompts are short: half the context is theirs.
        max_new_tokens=min(evals.new_tokens, experiment.model.context_length // 2),
        seed=experiment.config.seed,
        long_prompt="cut",
    )
    if evals.prompts:
        texts = complete(generator, tokenizer, list(evals.prompts), sampling)
        summary["samples"] = [
            {"prompt": prompt, "text": done.text}
            for prompt, done in zip(evals.prompts, texts, strict=True)
        ]
    if evals.function_samples:
        prompts = [MODULE_HEAD + FUNCTION_START] * evals.function_samples
        done = complete(generator, tokenizer, prompts, sampling)
        functions = [first_function(FUNCTION_START + d.text) for d in done]
        summary["functions"] = {
            "sampled": len(functions),
            "parse": sum(map(parses, functions)),
        }


def samples_text(summary: dict) -> str:
    """Returns prompts and continuations as a readable file."""
    parts = [f"{s['prompt']}{s['text']}" for s in summary.get("samples", [])]
    return "\n\n".join(f"--- sample {i + 1}\n{p}" for i, p in enumerate(parts)) + "\n"


def final_screen(summary: dict, folder: Path) -> str:
    """Returns the text that ends a run: scores beside compressors, samples, files."""
    validation = summary["validation"]
    main = main_score(validation)
    rows = [("this model", validation[main])]
    unit = "bits per byte" if main == BITS else "loss of a pair"
    lines = ["", f"step {summary['step']:,}: validation {unit}"]
    rows += [(f"  {name}", score) for name, score in summary["sources"].items()]
    rows += summary["compressors"].items()
    worst = max(score for _, score in rows)
    width = max(12, *(len(name) + 1 for name, _ in rows))
    for name, score in rows:
        share = score / worst if 0 < worst < math.inf else 0
        bar = "█" * max(1, round(40 * share))
        lines.append(f"  {name:<{width}}{score:6.3f}  {bar}")
    if "accuracy" in validation:
        lines.append(
            f"  {validation['accuracy']:.1%} of pairs right, the chosen ahead by "
            f"{validation['margin']:.3f}"
        )
    for sample in summary.get("samples", []):
        lines += ["", "─" * 72, f"{sample['prompt']}{sample['text']}".rstrip()]
    if "functions" in summary:
        parse, sampled = summary["functions"]["parse"], summary["functions"]["sampled"]
        share = f"{parse} of {sampled} ({parse / sampled:.0%})"
        lines += ["", "─" * 72, f"sampled functions that ast.parse accepts: {share}"]
    lines += [
        "",
        f"written: {folder}/loss.png, metrics.jsonl, samples.txt, tensorboard/",
        f'next:    lmx generate --workdir={folder} --prompt="def "',
    ]
    return "\n".join(lines)
