"""What training starts from: nothing, or the weights of another model.

`model.init_from` names a workdir, a Hugging Face directory, a Hub name or a GGUF file.
Its shape and its tokenizer then take the place of those of the experiment; precision,
context and everything outside the model stay the experiment's. A causal model may learn
to read prompts in both directions, where the experiment says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.core import config as configs
from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ExperimentConfig
from lmx.finetune.adapter import is_adapted

# How a model is computed, which stays as the experiment has it.
OWN = (
    *("context_length", "param_dtype", "compute_dtype", "residual_dtype"),
    *("softmax_dtype", "layer_loop", "remat", "kernels", "init_from"),
)


def adopted(config: ExperimentConfig) -> ExperimentConfig:
    """Returns `config` with the shape and tokenizer of the model it starts from.

    Raises:
      UserError: there is no such model, or its positions do not fit the context.
    """
    name = config.model.init_from
    if name is None:
        if is_adapted(config.adapter):
            raise UserError(
                "an adapter changes a trained model, and model.init_from names none; "
                "set it, or set adapter.method=None and adapter.train=() to train all"
            )
        return config
    folder = Path(name)
    if (folder / "checkpoints").is_dir():
        try:
            text = (folder / "config.json").read_text(encoding="utf8")
            source: ModelConfig = configs.from_json(text).model
        except (OSError, ValueError) as error:
            raise UserError(f"model.init_from={name} holds no run: {error}") from error
        tokenizer = folder / "tokenizer"
    else:
        from lmx.data.pipeline import cache_directory
        from lmx.interop.pretrained import open_pretrained

        found = open_pretrained(name)
        source = found.model
        tokenizer = cache_directory(config.data) / "tokenizers"
        tokenizer /= found.tokenizer.fingerprint
        found.tokenizer.save(tokenizer)
    shape = {
        field.name: getattr(source, field.name)
        for field in dataclasses.fields(ModelConfig)
        if field.name not in OWN
    }
    if (config.model.attention, source.attention) == ("prefix", "causal"):
        shape["attention"] = "prefix"  # what reads forward can learn to read prompts
    length = config.model.context_length
    if source.positions == "learned" and length != source.context_length:
        raise UserError(
            f"model.context_length={length}, but {name} learned "
            f"{source.context_length} positions; set it to that"
        )
    if is_adapted(config.adapter) and folder.exists():
        shape["init_from"] = str(folder.absolute())  # it is needed as long as this is
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **shape),
        data=dataclasses.replace(
            config.data, tokenizer=str(tokenizer.absolute() / "tokenizer.json")
        ),
    )


def start_params(
    config: ExperimentConfig, like: Any, base: Mapping[str, Any] | None = None
) -> Any:
    """Returns the weights that training starts from, None for initial ones.

    They have the dtypes and shardings of the abstract parameters `like` them: each
    shard is read straight to its device. Of a run they are its newest, or those of the
    step that an adapter's `base` names.
    """
    if config.model.init_from is None:
        return None
    from lmx.api import load

    step = None if base is None else base["step"]
    return load(config.model.init_from, step=step, like=like).params
