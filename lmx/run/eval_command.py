"""The command `lmx eval`: tasks on a model, with intervals; two models compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lmx.core.errors import DONE, UserError
from lmx.core.model_schema import DType
from lmx.core.workdir import write_atomic
from lmx.run.activity import Activity
from lmx.run.arguments import Parser, add_quantize, add_step
from lmx.run.eval_text import delta_lines, result_lines, task_lines

if TYPE_CHECKING:
    from lmx.evaluate.results import Settings
    from lmx.tasks import Task
    from lmx.tasks.reading import Data

EXAMPLE = """example:
  lmx eval --workdir=runs/imported --tasks=boolq,openbookqa --data=downloads/
  lmx eval --workdir=runs/imported --tasks=asdiv --data=asdiv=asdiv.jsonl --chat
  lmx eval --compare runs/base runs/tuned
  lmx eval --list
"""
FOLDER = "eval"  # in a workdir


def main(argv: list[str]) -> int:
    """Parses the command line, evaluates, and returns the exit code."""
    options = parser().parse_args(argv)
    if options.list:
        print("\n".join(task_lines()))
        return DONE
    if options.compare:
        return compare(options)
    if options.workdir is None or not (options.tasks or options.harness):
        raise UserError(
            "lmx eval needs --workdir=DIR and --tasks=NAMES (lmx eval --list names "
            "them), --harness=NAMES, or --compare with two workdirs"
        )
    if options.harness:
        from lmx.run.eval_harness import run_harness

        return run_harness(options)
    return evaluate(options)


def parser() -> Parser:
    """Returns the parser of `lmx eval`."""
    parser = Parser(
        prog="lmx eval",
        description="Measure a model on tasks, with bootstrap intervals; compare two.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="a run, an imported or a published model")
    add("--tasks", metavar="NAMES", help="comma-separated; --list shows all")
    add(
        "--data",
        metavar="DIR|NAME=PATH",
        action="append",
        default=[],
        help="a folder of data files, or the file of one task; may be repeated",
    )
    add("--limit", type=int, metavar="N", help="score N items of each task")
    add("--shots", type=int, default=0, metavar="K", help="examples before each item")
    chat = argparse.BooleanOptionalAction
    add("--chat", action=chat, default=False, help="ask with the chat template")
    add("--samples", type=int, help="answers of an item, for pass@k and parse rates")
    add("--seed", type=int, default=0, help="of shots, draws and intervals")
    add("--dtype", choices=get_args(DType), help="to compute in (default: the model's)")
    add("--batch", type=int, default=16, metavar="N", help="texts written at once")
    add_quantize(parser)
    add_step(parser)
    add("--out", metavar="DIR", help="of the results (default: WORKDIR/eval)")
    add("--harness", metavar="NAMES", help="tasks of EleutherAI's lm-eval (extra eval)")
    add("--include", metavar="DIR", help="of --harness: a folder of its YAML tasks")
    add("--compare", nargs=2, metavar=("W1", "W2"), help="results of two models")
    add("--list", action="store_true", help="show the tasks and end")
    return parser


def evaluate(options: argparse.Namespace) -> int:
    """Runs the tasks that the options name."""
    from lmx.evaluate.results import Settings
    from lmx.tasks import reading
    from lmx.tasks.code import sampled

    tasks = [sampled(task, options.samples) for task in chosen_tasks(options.tasks)]
    settings = checked_settings(options)
    sources = data_options(options.data)
    out = output_folder(options)
    # What is wrong with any task's data is told before a model is read.
    loaded = {task.name: reading.read(task, sources) for task in tasks}
    for task in tasks:
        reading.shots(task, loaded[task.name], settings.shots, seed=settings.seed)
    assert isinstance(settings, Settings)
    print("\n".join(run(options, tasks, loaded, settings, out)))
    print(f"written: {out}/TASK/results.json, samples.jsonl")
    return DONE


def run(
    options: argparse.Namespace,
    tasks: Sequence[Task],
    loaded: dict[str, Data],
    settings: Settings,
    out: Path,
) -> list[str]:
    """Evaluates each task that has no result of the same yet; returns the table."""
    from lmx.api import load
    from lmx.evaluate import results
    from lmx.evaluate.runner import Asking, check
    from lmx.run.eval_facts import facts, same_facts
    from lmx.run.subject import subject_of

    model = load(options.workdir, step=options.step, quantize=options.quantize)
    subject = subject_of(model, dtype=options.dtype, max_batch=options.batch)
    for task in tasks:
        check(task, subject, Asking(chat=settings.chat))
    found = []
    with Activity(amount=lambda count: f"{count:,.0f}") as activity:
        for task in tasks:
            folder = out / task.name
            told = facts(model, subject, task, loaded[task.name], settings, options)
            before = results.load(folder)
            if before is not None and same_facts(before.summary, told):
                activity.close()
                print(f"{task.name}: kept, from {folder}")
                found.append(before)
                continue
            result = results.evaluate(
                task, loaded[task.name], subject, settings, watch=activity
            )
            result = result._replace(summary={**result.summary, **told})
            results.save(folder, result)
            found.append(result)
    return result_lines([result.summary for result in found])


def chosen_tasks(names: str) -> list[Task]:
    """Returns the tasks of a comma-separated list, each once."""
    from lmx.tasks import named

    parts = [name.strip() for name in names.split(",") if name.strip()]
    if not parts:
        raise UserError("--tasks= names no task; lmx eval --list shows them")
    return [named(name) for name in dict.fromkeys(parts)]


def checked_settings(options: argparse.Namespace) -> Settings:
    """Returns the settings of the options; a `UserError` names a wrong one."""
    from lmx.evaluate.results import Settings

    for name, least in (("limit", 1), ("shots", 0), ("seed", 0), ("samples", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value} must be at least {least}")
    return Settings(options.limit, options.shots, options.chat, options.seed)


def data_options(values: Sequence[str]) -> dict[str, str]:
    """Returns task → path of every --data, '' for a folder of all."""
    from lmx.tasks import named

    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or "/" in name or Path(value).exists():
            name, path = "", value
        else:
            named(name)
        if name in found:
            what = f"task {name}" if name else "a folder"
            raise UserError(f"--data names {what} twice: {found[name]} and {path}")
        found[name] = path
    return found


def output_folder(options: argparse.Namespace) -> Path:
    """Returns where results go: --out, or a folder in the workdir."""
    if options.out is not None:
        return Path(options.out)
    if not Path(options.workdir).is_dir():
        raise UserError(
            f"--workdir={options.workdir} is no folder; say with --out=DIR where the "
            "results go"
        )
    return Path(options.workdir) / FOLDER


def compare(options: argparse.Namespace) -> int:
    """Prints what the second of two models does better or worse, and how surely."""
    from lmx.evaluate.comparison import deltas

    folders = [
        Path(name) / FOLDER if (Path(name) / FOLDER).is_dir() else Path(name)
        for name in options.compare
    ]
    found = list(deltas(*folders, seed=options.seed))
    print("\n".join(delta_lines(found, options.compare)))
    if options.out is not None:
        rows: list[dict[str, Any]] = [
            {**delta._asdict(), "comparison": delta.comparison._asdict()}
            for delta in found
        ]
        Path(options.out).mkdir(parents=True, exist_ok=True)
        path = Path(options.out) / "comparison.json"
        write_atomic(path, json.dumps(rows, indent=2) + "\n")
        print(f"written: {path}")
    return DONE
