"""Where the folder of a published tokenizer keeps its chat template."""

from __future__ import annotations

from pathlib import Path

from lmx.core.errors import DataError
from lmx.core.text_files import read_json, read_text

NAME = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"


def read_template(folder: Path) -> str | None:
    """Returns the chat template of a folder, None where there is none.

    It is a file of its own or, in older folders, a setting of the tokenizer; of several
    it is the one called 'default'. Raises a `DataError` for one that is no text.
    """
    if (folder / NAME).exists():
        return read_text(folder / NAME)
    settings = folder / SETTINGS
    template = read_json(settings).get("chat_template") if settings.exists() else None
    if isinstance(template, list):  # several by name
        tables = [entry for entry in template if isinstance(entry, dict)]
        named = {entry.get("name"): entry.get("template") for entry in tables}
        template = named.get("default", template)
    if template is not None and not isinstance(template, str):
        raise DataError(f"{settings}: chat_template={template!r:.60} is no text")
    return template
