"""The command `lmx tokenizer`: it parses nothing but the action's name."""

from __future__ import annotations

import importlib

from lmx.core.errors import DONE, USAGE, pick

# Action → (module with `main(argv)`, what it does). Modules load when they are run.
ACTIONS = {
    "train": ("lmx.run.tokenizer_train", "learn a tokenizer from text and save it"),
    "compare": ("lmx.run.tokenizer_compare", "measure several on held-out text"),
}
HELP = """lmx tokenizer: from text to a vocabulary, and which one is better

usage: lmx tokenizer ACTION [OPTIONS]

{actions}

  lmx tokenizer ACTION --help    options and an example

example:
  lmx tokenizer train --kind=bpe --vocab_size=4096 --text=docs/ --out=runs/bpe
  lmx tokenizer compare byte bpe:4096 unigram:4096 runs/bpe --text=docs/
"""


def main(argv: list[str]) -> int:
    """Runs an action and returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        rows = [f"  {name:<{width}}  {text}" for name, (_, text) in ACTIONS.items()]
        print(HELP.format(actions="\n".join(rows)))
        return DONE if argv else USAGE
    module, _ = pick(ACTIONS, argv[0], "action of lmx tokenizer")
    return importlib.import_module(module).main(argv[1:])
