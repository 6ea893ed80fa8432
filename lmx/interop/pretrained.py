"""A published model, opened: its architecture, its tensors, its tokenizer.

`open_pretrained` takes a Hugging Face directory, the name of one on the Hub, or a GGUF
file. Nothing in it is executed and no pickle is opened.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError, UserError
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.core.text_files import read_json
from lmx.inputs.tokenizers import Tokenizer
from lmx.interop.gguf_config import read_gguf_config
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_tokenizer import tokenizer_json
from lmx.interop.hf_config import read_config
from lmx.interop.hf_families import FAMILIES
from lmx.interop.hf_fields import Fields
from lmx.interop.hf_names import GPT2
from lmx.interop.hf_quantized import unpacked
from lmx.interop.hf_tokenizer import make_tokenizer, read_tokenizer
from lmx.interop.names import Row
from lmx.interop.safetensors_file import Safetensors
from lmx.interop.sentence_files import read_pooling
from lmx.interop.weights import Source, Watch, read_params, unwatched
from lmx.models.sizes import resolve

HUB_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a published model is made of; `params` reads the weights.

    Attributes:
      where: its path, for messages.
      model: its architecture, in float32.
      rows: what its tensors are called.
      source: its tensors.
      tokenizer: text ↔ ids.
      chat_template: the Jinja text that makes prompts of conversations, if it has one.
      family: its `model_type`, if it has one.
      unused: patterns of tensors that lmx has no layer for, and why.
      packing: how its files pack numbers, as transformers calls it, if they do.
    """

    where: Path
    model: Architecture
    rows: Sequence[Row]
    source: Source
    tokenizer: Tokenizer
    chat_template: str | None
    family: str | None = None
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    packing: str | None = None

    def params(
        self,
        model: Architecture | None = None,
        *,
        like: Any = None,
        watch: Watch = unwatched,
    ) -> dict[str, Any]:
        """Returns the weights as nested dicts, in `param_dtype` of `model`.

        Abstract values `like` them say dtype and sharding instead.
        """
        return read_params(
            model or self.model,
            self.rows,
            self.source,
            say_where=str(self.where),
            unused=self.unused,
            like=like,
            watch=watch,
        )


def open_pretrained(name: str | os.PathLike[str]) -> Pretrained:
    """Opens a Hugging Face directory, a `.gguf` file, or downloads a Hub name.

    Raises:
      UserError: there is nothing of this name, or it cannot be expressed.
      DataError: a file of it is missing or damaged.
    """
    path = Path(name)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if not path.exists():
        path = _download(str(name), path)
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{name} is a workdir of lmx already, not a published model; give it as it "
            "is, as --workdir or model.init_from"
        )
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise UserError(
            f"{name} holds an adapter of peft and not the model that it changes; make "
            "one of the two with lmx import"
        )
    if not (path / "config.json").exists():
        raise UserError(
            f"{name} holds no run and no published model: give a workdir, a folder "
            "with config.json and *.safetensors, a .gguf file, or a Hub name such as "
            "'org/model'"
        )
    return _open_directory(path)


def _download(name: str, path: Path) -> Path:
    """Returns the folder that the Hub's files were downloaded to.

    A name with a folder that is here means a path: the network is not asked.
    """
    if path.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        names = [p.name for p in path.parent.glob("[!.]*")] if "/" in name else []
        near = difflib.get_close_matches(path.name, names, n=1)
        meant = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise UserError(
            f"there is no {path.absolute()}{meant or '; correct the path'} (a name of "
            "the Hub is 'org/model', where no folder 'org' is here)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: there is no {Path(name).absolute()}, and to look for it on the "
            "Hub huggingface-hub is missing; correct the path, or install lmx[hub]"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the library has many
        why = str(error).partition("\n")[0]
        raise DataError(
            f"{name}: there is no {Path(name).absolute()}, and the Hub gave no "
            f"model of this name ({why}); correct the path or the name"
        ) from error


def _open_directory(folder: Path) -> Pretrained:
    values, where = read_json(folder / "config.json"), f"{folder}/config.json"
    packing = values.pop("quantization_config", None)
    family, config = read_config(values, where)
    config = dataclasses.replace(config, **read_pooling(folder))
    source = unpacked(Safetensors(folder), packing, where)
    rows = FAMILIES[family].rows
    if rows is GPT2 and "wte.weight" in source.names():
        # The first GPT-2 files were saved without the name of the whole.
        rows = [
            row._replace(theirs=row.theirs.removeprefix("transformer.")) for row in rows
        ]
    tokenizer, template = read_tokenizer(folder, values)
    return _checked(
        Pretrained(
            folder,
            _float32(config),
            rows,
            source,
            tokenizer,
            template,
            family,
            unused=FAMILIES[family].unused(Fields(values, where)),
            packing=packing and packing["quant_method"],
        )
    )


def _open_gguf(path: Path) -> Pretrained:
    file = GGUFFile(path)
    config, rows = read_gguf_config(file)
    text, ids = tokenizer_json(file.metadata)
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise DataError(f"{path}: tokenizer.chat_template={template!r:.60} is no text")
    tokenizer = make_tokenizer(text, ids, template=template, where=str(path))
    return _checked(Pretrained(path, _float32(config), rows, file, tokenizer, template))


def _checked(found: Pretrained) -> Pretrained:
    """Returns `found`, whose embedding must have a row for each token."""
    rows, tokens = found.model.vocab_size, found.tokenizer.vocab_size
    if tokens > rows:
        raise DataError(
            f"{found.where}: the tokenizer has {tokens} tokens and the embedding "
            f"{rows} rows; it is another model's tokenizer"
        )
    return found


def _float32(config: ModelConfig) -> Architecture:
    """Returns the architecture, computing in float32 as the references do."""
    return resolve(dataclasses.replace(config, compute_dtype="float32"))
