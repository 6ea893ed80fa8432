"""The command `lmx tokenizer` and its actions."""

from __future__ import annotations

from lmx.run.actions import run_action

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
    return run_action(argv, ACTIONS, command="tokenizer", page=HELP)
