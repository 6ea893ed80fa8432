"""A model in a published format: a Hugging Face directory, or a GGUF file.

What is written appears whole or not at all: a directory is filled beside its place and
renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.errors import StorageError, UserError, pick
from lmx.core.model_schema import Architecture
from lmx.core.new_folder import new_folder
from lmx.inputs.tokenizers import Tokenizer
from lmx.interop.added_tokens import begin_with
from lmx.interop.gguf_config import write_gguf_config
from lmx.interop.gguf_rope import FACTORS, rope_factors
from lmx.interop.gguf_tokenizer import tokenizer_metadata
from lmx.interop.gguf_writer import write_gguf
from lmx.interop.hf_config import write_config
from lmx.interop.hf_families import FAMILIES
from lmx.interop.safetensors_file import DTYPES, write_safetensors
from lmx.interop.sentence_files import write_pooling
from lmx.interop.weights import Watch, published, unwatched

FORMATS = ("hf", "gguf")
GGUF_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}
HF_DTYPES: dict[str, np.dtype] = {
    str(DTYPES[code]): DTYPES[code] for code in ("F32", "F16", "BF16")
}


def export(
    directory: str | os.PathLike[str],
    *,
    to: str,
    dtype: str,
    model: Architecture,
    params: Any,
    tokenizer: Tokenizer,
    chat_template: str | None,
    family: str | None = None,
    watch: Watch = unwatched,
) -> Path:
    """Writes a model into the new folder `directory` and returns what was written.

    `dtype` is that of the weights: float32, float16 or bfloat16, for GGUF also int8
    (Q8_0). `family` is tried first among those of Hugging Face. `watch` is told how
    far it is.

    Raises:
      UserError: the folder is not empty, the format cannot express the model, or the
        dtype is unknown.
      StorageError: it cannot be written; nothing is left of it.
    """
    if to not in FORMATS:
        pick(dict.fromkeys(FORMATS), to, "export format")
    if model.attention == "prefix":
        raise UserError(
            f"model.attention='prefix' cannot be exported to {to!r}, which has no word "
            "for prompts that are read in both directions: others would read them as "
            "'causal' does and answer otherwise"
        )
    folder = Path(directory).absolute()
    parts = (dtype, model, params, tokenizer, chat_template, watch)
    try:
        with new_folder(folder) as new:
            if to == "hf":
                _write_directory(new.path, family, *parts)
            else:
                _write_gguf(new.path, *parts)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder} ({error.strerror}); free some space or choose "
            "another folder"
        ) from error
    return folder if to == "hf" else folder / "model.gguf"


def _write_directory(
    folder: Path, family, dtype, model, params, tokenizer, template, watch
) -> None:
    family, config = write_config(model, family)
    number = pick(HF_DTYPES, dtype, "dtype of an export to hf")
    ids = {
        f"{n}_token_id": getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad")
    }
    if not tokenizer.prefix_ids and tokenizer.bos_id == tokenizer.eos_id:
        ids["bos_token_id"] = None
    _write_json(folder / "config.json", {**config, **ids, "dtype": dtype})
    ends = list(tokenizer.eos_ids)
    generation = ids if len(ends) == 1 else {**ids, "eos_token_id": ends}
    _write_json(folder / "generation_config.json", generation)
    rows = FAMILIES[family].rows
    write_safetensors(folder, published(model, rows, params, watch=watch), number)
    text = with_prefix(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context_length,
        "clean_up_tokenization_spaces": False,
    }
    for name, index in ids.items():
        if index is not None:
            settings[name.removesuffix("_id")] = tokenizer.token(index)
    if template is not None:
        settings["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf8")
    _write_json(folder / "tokenizer_config.json", settings)
    if model.attention == "bidirectional":
        write_pooling(folder, model)


def with_prefix(tokenizer: Tokenizer) -> str:
    """Returns the text of a tokenizer.json that begins texts as `tokenizer` does."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.content)
    prefix = list(tokenizer.prefix_ids)
    if not prefix or backend.encode("a").ids[: len(prefix)] == prefix:
        return tokenizer.content
    bos = str(tokenizer.token(tokenizer.bos_id))
    begin_with(backend, bos, tokenizer.bos_id)
    return backend.to_str(pretty=True)


def _write_gguf(folder: Path, dtype, model, params, tokenizer, template, watch) -> None:
    kind = pick(GGUF_KINDS, dtype, "dtype of an export to gguf")
    metadata, rows = write_gguf_config(model)
    ids = {
        f"{n}_id": getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad", "unk")
    }
    ids |= {
        "eos_ids": tokenizer.eos_ids,
        "add_bos": bool(tokenizer.prefix_ids),
    }
    metadata |= tokenizer_metadata(tokenizer.content, ids, vocab_size=model.vocab_size)
    if template is not None:
        metadata["tokenizer.chat_template"] = template

    def wide(make):
        return lambda: np.asarray(make(), np.float32)

    tensors = [
        (name, shape, wide(make))
        for name, shape, make in published(model, rows, params, watch=watch)
    ]
    if model.rope_scaling == "llama3":
        factors = rope_factors(model)
        tensors.append((FACTORS, factors.shape, lambda: factors))
    write_gguf(folder / "model.gguf", metadata, tensors, kind)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf8")
