"""Text and JSON of strangers, read with a limit on their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError

LARGEST = 100_000_000  # bytes of a config or a tokenizer


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file; raises a `DataError` for one over the limit."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; download it"
        ) from error
    if len(content) > LARGEST:
        raise DataError(
            f"{path} has more than {LARGEST} bytes, too many to be what its name says; "
            "download it again"
        )
    return content


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a file."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error}); download it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the table of fields that a JSON file holds."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a table of fields")
    return values
