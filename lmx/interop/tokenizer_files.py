"""The tokenizer alone of what may lie on a disk, whatever made it.

A workdir, a built store or a folder of `lmx tokenizer train`; a Hugging Face directory,
with or without weights; a `.gguf` file; a lone tokenizer.json, SentencePiece `.model`
or `.tiktoken` file. No weight is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmx.core.errors import DataError, UserError
from lmx.core.text_files import read_json
from lmx.inputs.tokenizers import KINDS, Tokenizer
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_tokenizer import tokenizer_json
from lmx.interop.hf_tokenizer import FILES, make_tokenizer, read_tokenizer

# What says which tokens are special, beside a vocabulary.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
VOCABULARIES = (".model", ".tiktoken")


def open_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer at `name`, a path or the name of a model on the Hub.

    Raises:
      UserError: there is nothing of this name, or no tokenizer in it.
      DataError: its files are damaged.
    """
    path = Path(name)
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        return _of_hub(str(name))
    if path.suffix == ".gguf":
        text, ids = tokenizer_json(GGUFFile(path).metadata)
        return make_tokenizer(text, ids, template=None, where=str(path))
    if path.suffix in VOCABULARIES or path.name == "vocab.json":
        return read_tokenizer(path.parent, _config(path.parent), file=path)[0]
    if path.name == "tokenizer.json":
        return _of_json(path)
    if path.suffix == ".json":
        return Tokenizer.load(path)
    raise UserError(
        f"{path} is no tokenizer: give a tokenizer.json, a SentencePiece .model, a "
        ".tiktoken or a .gguf file, or a folder with one"
    )


def _of_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer" / "tokenizer.json").exists():
        return _of_json(folder / "tokenizer" / "tokenizer.json")
    if (folder / "tokenizer.json").exists():
        return _of_json(folder / "tokenizer.json")
    if any((folder / n).exists() for n in FILES) or any(folder.glob("*.tiktoken")):
        return read_tokenizer(folder, _config(folder))[0]
    raise UserError(
        f"{folder} has no tokenizer: none of {', '.join(FILES)}, no *.tiktoken and no "
        "folder tokenizer/; give a workdir, a model's folder or a tokenizer file"
    )


def _of_json(file: Path) -> Tokenizer:
    """Ours has a meta.json beside it; of others, their settings say what is special."""
    folder = file.parent
    ours = (folder / "meta.json").exists()
    if ours or not any((folder / name).exists() for name in SETTINGS):
        return Tokenizer.load(file)
    return read_tokenizer(folder, _config(folder), file=file)[0]


def _of_hub(name: str) -> Tokenizer:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(
            f"there is no tokenizer {name!r}: give the path of one, or one to train "
            f"here, as KIND:SIZE (KIND is one of {', '.join(KINDS)})"
        )
    from lmx.interop.pretrained import open_pretrained

    try:
        return open_pretrained(name).tokenizer
    except DataError as error:
        raise UserError(str(error)) from error


def _config(folder: Path) -> dict:
    file = folder / "config.json"
    return read_json(file) if file.exists() else {}
