"""`lmx eval --harness=…`: tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lmx.core.errors import DONE, UserError, did_you_mean
from lmx.core.workdir import write_atomic
from lmx.run.activity import Activity


def run_harness(options: argparse.Namespace) -> int:
    """Runs the harness's tasks, prints its table, writes its results."""
    from lmx.run.eval_command import output_folder

    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise UserError(
            f"--harness needs lm-eval ({error}); pip install 'lmx[harness]'"
        ) from error
    from lmx.api import load
    from lmx.evaluate.harness import HarnessModel
    from lmx.run.subject import subject_of

    names = [name.strip() for name in options.harness.split(",") if name.strip()]
    out = output_folder(options)
    manager = TaskManager(include_path=options.include)
    for name in names:
        if not manager.match_tasks([name]):
            near = did_you_mean(name, manager.all_tasks)
            raise UserError(f"lm-eval has no task {name!r}{near[:200]}")
    model = load(options.workdir, step=options.step, quantize=options.quantize)
    subject = subject_of(model, dtype=options.dtype, max_batch=options.batch)
    if options.chat and subject.template is None:
        raise UserError("--chat: this model has no chat template; leave it out")
    with Activity(amount=lambda count: f"{count:,.0f}") as activity:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=HarnessModel(subject, watch=activity),
            tasks=names,
            num_fewshot=options.shots or None,
            limit=options.limit,
            apply_chat_template=options.chat,
            task_manager=manager,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
        )
    folder = out / "harness"
    folder.mkdir(parents=True, exist_ok=True)
    samples = found.pop("samples", {})
    for name, rows in samples.items():
        lines = [json.dumps(row, default=str, ensure_ascii=False) for row in rows]
        write_atomic(folder / f"samples_{name}.jsonl", "\n".join(lines) + "\n")
    text = json.dumps(found, indent=2, default=str, ensure_ascii=False)
    write_atomic(folder / "results.json", text + "\n")
    print(make_table(found))
    print(f"written: {folder}/results.json, samples_TASK.jsonl")
    return DONE
