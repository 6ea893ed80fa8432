"""A loaded model → what writes with it, and what `lmx.evaluate` measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmx.generate.decode import Generator

if TYPE_CHECKING:
    from lmx.api import LanguageModel
    from lmx.core.model_schema import DType
    from lmx.evaluate.results import Result
    from lmx.evaluate.runner import Subject


def generator_of(
    model: LanguageModel, *, dtype: DType | None = None, max_batch: int = 16
) -> Generator:
    """Returns what writes with a model: `max_batch` texts at once, computed in `dtype`.

    It keeps copies of the weights.
    """
    tokenizer, config = model.tokenizer, model.model
    if dtype is not None:
        config = dataclasses.replace(config, compute_dtype=dtype)
    return Generator(
        config,
        model.params,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        quantize=model.quantize,
        max_batch=max_batch,
    )


def subject_of(
    model: LanguageModel, *, dtype: DType | None = None, max_batch: int = 16
) -> Subject:
    """Returns a model as tasks are run on it."""
    from lmx.evaluate.runner import Subject
    from lmx.inputs.examples import chat_template

    source, template = model.chat_template, None
    if source is not None:
        template = chat_template(model.tokenizer, source)
    generator = generator_of(model, dtype=dtype, max_batch=max_batch)
    return Subject(generator, model.tokenizer, template)


def evaluate_all(
    model: LanguageModel,
    tasks: str | Sequence[str],
    data: str | Mapping[str, str] = {},
    *,
    dtype: DType | None = None,
    **settings: Any,
) -> dict[str, Result]:
    """Returns the result of each task by its name; see `LanguageModel.evaluate`."""
    from lmx.evaluate.results import Settings, evaluate
    from lmx.tasks import named, reading

    chosen = [named(name) for name in ([tasks] if isinstance(tasks, str) else tasks)]
    sources = {"": data} if isinstance(data, str) else dict(data)
    loaded = [reading.read(task, sources) for task in chosen]
    subject, asked = subject_of(model, dtype=dtype), Settings(**settings)
    return {
        task.name: evaluate(task, each, subject, asked, watch=lambda *_: None)
        for task, each in zip(chosen, loaded, strict=True)
    }
