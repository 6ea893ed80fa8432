"""The end of a training run: the last evaluation, samples, a plot, the final screen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmx.core.workdir import write_atomic
from lmx.evaluate.compression import compressed_bits_per_byte
from lmx.evaluate.syntax import first_function, parses
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import complete
from lmx.report.plots import plot_losses
from lmx.run.build import Experiment
from lmx.run.evaluator import evaluator
from lmx.run.train import SUMMARY
from lmx.training.metrics import FILE_NAME
from lmx.training.state import TrainState

# A function is sampled where one stands in real code, below the imports of a module.
MODULE_HEAD, FUNCTION_START = "import os\nimport sys\n\n\n", "def "


def finish(
    experiment: Experiment, state: TrainState, folder: Path, *, say: Callable
) -> dict[str, Any]:
    """Evaluates, samples, plots, prints the final screen and returns the summary."""
    config = experiment.config
    say("evaluating on the validation split")
    measured = evaluator(experiment, final=True)(state)
    summary: dict[str, Any] = {
        "step": int(state.step),
        "validation": {
            "loss": round(measured["eval/validation/loss"], 4),
            "bits_per_byte": round(measured["eval/validation/bpb"], 4),
        },
        "sources": {
            source.name: round(measured[f"eval/{source.name}/bpb"], 4)
            for source in experiment.corpus.sources
            if f"eval/{source.name}/bpb" in measured
        },
        "compressors": {},
        "skipped_steps": int(state.guard.skipped),
    }
    if config.evals.compressors and not experiment.corpus.learned_whole:
        say(
            "compressors are left out: they would see all of the validation examples, "
            "and the model's bits are of what is learned of them"
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
    rows = [("this model", validation["bits_per_byte"])]
    lines = ["", f"step {summary['step']:,}: validation bits per byte"]
    rows += [(f"  {name}", bits) for name, bits in summary["sources"].items()]
    rows += summary["compressors"].items()
    worst = max(bits for _, bits in rows)
    width = max(12, *(len(name) + 1 for name, _ in rows))
    for name, bits in rows:
        share = bits / worst if 0 < worst < math.inf else 0
        lines.append(f"  {name:<{width}}{bits:6.3f}  {'█' * max(1, round(40 * share))}")
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
