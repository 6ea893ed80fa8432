"""The command `lmx data` and its actions."""

from __future__ import annotations

from lmx.run.actions import run_action

ACTIONS = {
    "build": ("lmx.run.data_build", "sources → a store of tokens with its data card"),
    "task": ("lmx.run.data_task", "what a task has to learn from, as records"),
    "show": ("lmx.run.data_show", "a row of a store or a batch of a step, decoded"),
    "trace": ("lmx.run.data_trace", "which runs saw how many tokens of a source"),
}
HELP = """lmx data: what training reads

usage: lmx data ACTION [OPTIONS]

{actions}

  lmx data ACTION --help    options and an example

example:
  lmx data show STORE --row=17
"""


def main(argv: list[str]) -> int:
    """Runs an action and returns its exit code."""
    return run_action(argv, ACTIONS, command="data", page=HELP)
