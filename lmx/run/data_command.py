"""The command `lmx data`: it parses nothing but the action's name."""

from __future__ import annotations

import importlib

from lmx.core.errors import DONE, USAGE, pick

# Action → (module with `main(argv)`, what it does). Modules load when they are run.
ACTIONS = {
    "build": ("lmx.run.data_build", "sources → a store of tokens with its data card"),
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
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        rows = [f"  {name:<{width}}  {text}" for name, (_, text) in ACTIONS.items()]
        print(HELP.format(actions="\n".join(rows)))
        return DONE if argv else USAGE
    module, _ = pick(ACTIONS, argv[0], "action of lmx data")
    return importlib.import_module(module).main(argv[1:])
