"""Commands that have actions, `lmx COMMAND ACTION …`: only the action's name is parsed.

Actions are a table: name → (module with `main(argv)`, what it does). A module loads
when its action is run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from lmx.core.errors import DONE, USAGE, pick


def run_action(
    argv: list[str],
    actions: Mapping[str, tuple[str, str]],
    *,
    command: str,
    page: str,
) -> int:
    """Runs the action that `argv` begins with; returns its exit code.

    Without one, or for --help, prints `page` with the list put in for {actions}.
    """
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, actions))
        rows = [f"  {name:<{width}}  {text}" for name, (_, text) in actions.items()]
        print(page.format(actions="\n".join(rows)))
        return DONE if argv else USAGE
    module, _ = pick(actions, argv[0], f"action of lmx {command}")
    return importlib.import_module(module).main(argv[1:])
