"""An option: a field of a frozen dataclass with a default and what it means."""

from __future__ import annotations

import dataclasses
from typing import Any


def knob(default: Any, doc: str) -> Any:
    """Returns a dataclass field with a default and its one-sentence documentation."""
    return dataclasses.field(default=default, metadata={"doc": doc})
