"""Whether sampled Python is Python: the share of functions that `ast.parse` accepts."""

from __future__ import annotations

import ast
import warnings


def first_function(text: str) -> str:
    """Returns the first top-level block of `text`, which starts with a `def` line.

    It ends before the next line that is not indented. Where the text stops inside it,
    the last, unfinished line is dropped.
    """
    lines = text.split("\n")
    kept = [lines[0]]
    for line in lines[1:]:
        if line.strip() and not line[0].isspace() and not line.startswith((")", "#")):
            return "\n".join(kept).rstrip() + "\n"
        kept.append(line)
    return "\n".join(kept[:-1] if len(kept) > 1 else kept).rstrip() + "\n"


def parses(source: str) -> bool:
    """Returns whether `ast.parse` accepts `source`; nothing is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
