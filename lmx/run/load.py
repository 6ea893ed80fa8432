"""What `lmx.load` finds in a folder: a run, or an adapter and the model it changes.

The arguments are those of `lmx.load`, where errors are told too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmx.api import LanguageModel, load
from lmx.core import config as configs
from lmx.core.errors import CheckpointError, DataError, UserError
from lmx.core.text_files import read_text
from lmx.data.built import TEMPLATE
from lmx.finetune.adapter import Adapter, Change, is_adapted
from lmx.finetune.base import check_base
from lmx.finetune.peft import change_of, read_peft
from lmx.generate.weights import Quantize
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.sizes import resolve
from lmx.training.checkpoints import Checkpoints

Base = str | Path | None


def load_workdir(
    folder: Path, step: int | None, like: Any, quantize: Quantize, base: Base
) -> LanguageModel:
    """Returns the model of a run, joined with its base if it trained an adapter."""
    try:
        config = configs.from_json((folder / "config.json").read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no run ({error}); train one there with lmx train "
            f"--workdir={folder}"
        ) from error
    tokenizer = Tokenizer.load(folder / "tokenizer")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise CheckpointError(
                f"{folder} has no checkpoint yet; wait for the first "
                "(checkpoint.save_every_steps), or train on"
            )
        facts = checkpoints.facts(step)
        if facts.get("tokenizer") != tokenizer.fingerprint:
            raise DataError(
                f"{folder}/tokenizer is not the tokenizer of checkpoint {step}; "
                "restore the folder from the run that trained it"
            )
        adapted = is_adapted(config.adapter)
        params = checkpoints.restore_params(step, like=None if adapted else like)
    family, change = facts.get("family"), None
    if adapted:
        where = str(base or config.model.init_from)
        check_base(where, facts["base"], where=folder)
        start = load(where, step=facts["base"]["step"], like=like)
        change = Change(Adapter(config.adapter, resolve(config.model)), params)
        params, family = change.of(start.params, like=like), start.family
    file = folder / TEMPLATE
    return LanguageModel(
        config,
        params,
        tokenizer,
        step=step,
        chat_template=read_text(file) if file.exists() else None,
        quantize=quantize,
        family=family,
        change=change,
    )


def load_peft(
    folder: Path, step: int | None, like: Any, quantize: Quantize, base: Base
) -> LanguageModel:
    """Returns the model that an adapter of peft makes of the one that it names."""
    saved = read_peft(folder)
    try:
        found = load(base or saved.base, step=step, like=like, quantize=quantize)
    except UserError as error:
        raise DataError(
            f"{folder} is an adapter for {base or saved.base}, which cannot be opened "
            f"({error}); say where it is: base=…"
        ) from error
    saved = saved._replace(base=str(base or saved.base))
    change = change_of(saved, found.model, found.family, where=folder)
    params = change.of(found.params, like=like)
    model = dataclasses.replace(found.config.model, init_from=saved.base)
    config = dataclasses.replace(
        found.config, model=model, adapter=change.adapter.config
    )
    return LanguageModel(
        config,
        params,
        found.tokenizer,
        step=found.step,
        chat_template=found.chat_template,
        quantize=quantize,
        family=found.family,
        change=change,
    )
