"""Exit codes, and the errors that carry one.

A `UserError` is a mistake of the user's or of the world's, not a bug: the command line
prints its message without a traceback and exits with its code. The message names the
value, the constraint and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

DONE, BUG, USAGE, DATA, DIVERGED, NO_CHECKPOINT = 0, 1, 2, 3, 4, 5
IO_ERROR, PREEMPTED, INTERRUPTED = 74, 75, 130

T = TypeVar("T")


class UserError(ValueError):
    """A mistake with a remedy. `exit_code` is what the command exits with."""

    exit_code = USAGE


class DataError(UserError):
    """The data is missing, unreadable, empty, or not what the run was started with."""

    exit_code = DATA


class DivergedError(UserError):
    """Losses were not finite for too long; the weights still are."""

    exit_code = DIVERGED


class CheckpointError(UserError):
    """No checkpoint can be used."""

    exit_code = NO_CHECKPOINT


class StorageError(UserError):
    """The disk is full, read-only, or in use by another run."""

    exit_code = IO_ERROR


class Preempted(UserError):
    """The run was asked to stop, saved, and can be started again."""

    exit_code = PREEMPTED


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest option, or the options."""
    options = [str(option) for option in options]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(options))}"


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns `table[name]`, or raises a `UserError` that names the nearest entry."""
    if name in table:
        return table[name]
    raise UserError(f"unknown {what} {name!r}{did_you_mean(name, table)}")
