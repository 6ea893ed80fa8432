"""`lmx data task`: what may be learned of a task, as records for `lmx data build`.

The prompts are those that `lmx eval` asks with; what it scores is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmx.core.errors import DONE, DataError, UserError
from lmx.core.workdir import write_atomic
from lmx.run.arguments import Parser
from lmx.run.eval_command import data_options

EXAMPLE = """example:
  lmx data task package_descriptions --data=downloads/ --out=summaries.jsonl --chat
  lmx data build --config=recipe.py --out=stores/summaries
"""


def main(argv: list[str]) -> int:
    """Parses the command line, writes the records, returns the exit code."""
    parser = Parser(
        prog="lmx data task",
        description="Write a task's training items as records of prompt and answer.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("task", metavar="TASK", help="lmx eval --list shows them")
    add("--data", metavar="DIR|NAME=PATH", action="append", default=[])
    add("--out", required=True, metavar="FILE.jsonl", help="a new file")
    add("--chat", action="store_true", help="write messages, not prompt and completion")
    options = parser.parse_args(argv)
    out = Path(options.out)
    if out.suffix != ".jsonl" or out.exists():
        raise UserError(f"--out={out} must be a new file that ends in .jsonl")
    found = list(records(options.task, data_options(options.data), chat=options.chat))
    lines = [json.dumps(record, ensure_ascii=False) for record in found]
    write_atomic(out, "\n".join(lines) + "\n")
    form = next(iter(found[0]))
    print(f"written: {out} ({len(found):,} records)")
    print(f"next:    a source of lmx data build with format {FORMATS[form]!r}")
    return DONE


FORMATS = {"messages": "messages", "prompt": "prompt_completion", "text": "text"}


def records(
    name: str, data: dict[str, str], *, chat: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the records of what a task may be learned of.

    Raises:
      DataError: there is nothing that is not scored.
    """
    from lmx.tasks import named, reading

    task = named(name)
    found = reading.read(task, data)
    made = [task.record(item, chat=chat or task.chat) for item in found.train]
    kept = [record for record in made if record is not None]
    if not kept:
        raise DataError(
            f"task {name}: its data has nothing to learn from "
            f"({found.rule}); give a file with 'train' in its name"
        )
    yield from kept
