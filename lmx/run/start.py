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

import jax
import jax.numpy as jnp

from lmx.core import config as configs
from lmx.core.errors import DataError, UserError, pick
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.core.schema import ExperimentConfig
from lmx.finetune.adapter import is_adapted
from lmx.finetune.objectives import OBJECTIVES
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.decoder import REWARD_HEAD
from lmx.models.sizes import resolve

REWARDS = "^reward_head$"  # what an adapter of a reward model trains in full
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
    config = _ready(config)
    name = config.model.init_from
    if name is None:
        if is_adapted(config.adapter):
            raise UserError(
                "an adapter changes a trained model, and model.init_from names none; "
                "set it, or set adapter.method=None and adapter.train=() to train all"
            )
        return config
    source, words = source_of(name, "model.init_from")
    tokenizer = Path(name) / "tokenizer"
    if not (Path(name) / "checkpoints").is_dir():
        from lmx.data.pipeline import cache_directory

        tokenizer = cache_directory(config.data) / "tokenizers" / words.fingerprint
        words.save(tokenizer)
    model = in_shape_of(source, config.model, name)
    if config.objective.name == "reward":
        model = dataclasses.replace(model, reward_head="last")
    against = OBJECTIVES[config.objective.name].against
    if (is_adapted(config.adapter) or against == "start") and Path(name).exists():
        # It is needed as long as this is.
        model = dataclasses.replace(model, init_from=str(Path(name).absolute()))
    return dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(
            config.data, tokenizer=str(tokenizer.absolute() / "tokenizer.json")
        ),
    )


def _ready(config: ExperimentConfig) -> ExperimentConfig:
    """Returns `config` with what its objective needs of the model.

    Raises a `UserError` where it compares with a model and none is named.
    """
    chosen = config.objective
    against = pick(OBJECTIVES, chosen.name, "objective").against
    if against == "start" and config.model.init_from is None:
        raise UserError(
            f"objective.name={chosen.name!r} compares with the model that training "
            "starts from, and model.init_from names none; set it, or choose 'orpo' or "
            "'simpo', which compare with none"
        )
    if against == "teacher" and chosen.teacher is None:
        raise UserError(
            f"objective.name={chosen.name!r} needs objective.teacher, the model to "
            "learn from"
        )
    if chosen.name != "reward":
        return config
    adapter = config.adapter
    if is_adapted(adapter) and REWARDS not in adapter.train:
        adapter = dataclasses.replace(adapter, train=(*adapter.train, REWARDS))
    model = dataclasses.replace(config.model, reward_head="last")
    return dataclasses.replace(config, model=model, adapter=adapter)


def source_of(name: str, option: str) -> tuple[ModelConfig, Tokenizer]:
    """Returns the shape and the tokenizer of a model that `option` names.

    Raises a `UserError` if there is none.
    """
    folder = Path(name)
    if (folder / "checkpoints").is_dir():
        try:
            text = (folder / "config.json").read_text(encoding="utf8")
            model: ModelConfig = configs.from_json(text).model
        except (OSError, ValueError) as error:
            raise UserError(f"{option}={name} holds no run: {error}") from error
        return model, Tokenizer.load(folder / "tokenizer")
    from lmx.interop.pretrained import open_pretrained

    found = open_pretrained(name)
    return found.model, found.tokenizer


def in_shape_of(source: ModelConfig, model: ModelConfig, name: str) -> ModelConfig:
    """Returns `model` in the shape of the `source` called `name`, computed as before.

    Raises a `UserError` where its positions do not fit the context.
    """
    shape = {
        field.name: getattr(source, field.name)
        for field in dataclasses.fields(ModelConfig)
        if field.name not in OWN
    }
    if (model.attention, source.attention) == ("prefix", "causal"):
        shape["attention"] = "prefix"  # what reads forward can learn to read prompts
    length = model.context_length
    if source.positions == "learned" and length != source.context_length:
        raise UserError(
            f"model.context_length={length}, but {name} learned "
            f"{source.context_length} positions; set it to that"
        )
    return dataclasses.replace(model, **shape)


def teacher_of(config: ExperimentConfig, tokenizer: Tokenizer) -> Architecture | None:
    """Returns the shape of the teacher that the objective asks for, None for none.

    Raises a `DataError` if it reads with another tokenizer.
    """
    name = config.objective.teacher
    if OBJECTIVES[config.objective.name].against != "teacher" or name is None:
        return None
    source, words = source_of(name, "objective.teacher")
    if words.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"objective.teacher={name} has another tokenizer "
            f"({words.fingerprint[:12]}) than this model "
            f"({tokenizer.fingerprint[:12]}): its distributions are over other tokens; "
            f"set data.tokenizer={name}/tokenizer, or learn from its text: lmx generate"
        )
    shape = in_shape_of(source, config.model, name)
    shape = dataclasses.replace(shape, attention=source.attention)
    return resolve(shape, vocab_size=source.vocab_size)


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
    name = config.model.init_from
    source, _ = source_of(name, "model.init_from")
    if REWARD_HEAD not in like or source.reward_head is not None:
        return load(name, step=step, like=like).params
    rest = {key: leaf for key, leaf in like.items() if key != REWARD_HEAD}
    head = like[REWARD_HEAD]
    zeros = jax.device_put(jnp.zeros(head.shape, head.dtype), head.sharding)
    return {**load(name, step=step, like=rest).params, REWARD_HEAD: zeros}


def teacher_params(config: ExperimentConfig, like: Any, base: Any) -> Any:
    """Returns the weights of the teacher that `base` describes, placed as `like`."""
    from lmx.api import load

    return load(str(config.objective.teacher), step=base["step"], like=like).params
