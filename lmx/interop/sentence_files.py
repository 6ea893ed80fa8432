"""What a published model makes of a text's hidden states: `modules.json` and beside it.

These are the files of sentence-transformers: modules in order, the first of which is
the transformer itself. One that lmx cannot express is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError, UserError
from lmx.core.model_schema import Architecture
from lmx.core.text_files import read_json, read_text

MODULES = "modules.json"
# Their name of a mode → ours.
MODES = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
PREFIX = "pooling_mode_"
TYPE = "sentence_transformers.models."


def read_pooling(folder: Path) -> dict[str, Any]:
    """Returns the option `pooling` of a directory, nothing where it has no modules.

    Raises:
      UserError: there is a module or a mode that lmx cannot express.
      DataError: a file is damaged.
    """
    file = folder / MODULES
    if not file.exists():
        return {}
    kinds: list[str] = []
    pooling = None
    for entry in _entries(file):
        kind = str(entry.get("type")).rpartition(".")[2]
        kinds.append(kind)
        if kind == "Pooling":
            # A path with folders in it would lead out of the directory.
            place = folder / Path(str(entry.get("path"))).name / "config.json"
            pooling = _mode(read_json(place), place)
    known = [["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]]
    if kinds not in known or pooling is None:
        raise UserError(
            f"{file}: the modules {', '.join(kinds)} cannot be imported; lmx can "
            "express Transformer, Pooling and then Normalize or nothing"
        )
    return {"pooling": pooling + ("_unit" if kinds[-1] == "Normalize" else "")}


def write_pooling(folder: Path, model: Architecture) -> None:
    """Writes the files that `read_pooling` reads."""
    mode, _, unit = model.pooling.partition("_")
    names = ["Transformer", "Pooling", *(["Normalize"] if unit else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"{TYPE}{name}",
        }
        for i, name in enumerate(names)
    ]
    settings: dict[str, Any] = {"word_embedding_dimension": model.width}
    settings |= {f"{PREFIX}{theirs}": ours == mode for theirs, ours in MODES.items()}
    (folder / "1_Pooling").mkdir()
    if unit:
        (folder / "2_Normalize").mkdir()
    length = {"max_seq_length": model.context_length, "do_lower_case": False}
    for name, values in (
        (MODULES, modules),
        ("1_Pooling/config.json", settings),
        ("sentence_bert_config.json", length),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", "utf8")


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DataError(f"{file} is not a list of modules")
    return entries


def _mode(settings: dict[str, Any], place: Path) -> str:
    """Returns the one mode that is set."""
    on = [key for key, value in settings.items() if key.startswith(PREFIX) and value]
    named = settings.get("pooling_mode")  # newer files say it in one word
    on += [f"{PREFIX}{named}" + ("_token" if named == "cls" else "")] if named else []
    on = [name.removeprefix(PREFIX) for name in on]
    modes = [MODES.get(name, MODES.get(f"{name}_tokens", "")) for name in on]
    if len(modes) != 1 or not modes[0]:
        raise UserError(
            f"{place}: pooling by {', '.join(on) or 'nothing'} cannot be imported; lmx "
            f"can express one of {', '.join(MODES)}"
        )
    return modes[0]
