"""Models of equal training FLOPs, one a tokenizer: which text do they predict best?

The transformer's body, the text, its split, the batch in tokens and the learning rate
are the same. The vocabulary decides what a token costs (the head multiplies it) and how
much text it covers; the steps are as many as the FLOPs buy. So a tokenizer that makes
text shorter shows its model more of it, and pays for its vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lmx.core.config import default_config, freeze, override
from lmx.core.errors import UserError
from lmx.core.schema import ExperimentConfig
from lmx.evaluate.tokenizer_metrics import TokenizerMeasure, hidden_bits_per_byte
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.counting import flops_per_token, parameter_count
from lmx.models.sizes import resolve

FEWEST_STEPS = 20
# What is not the same for all tokenizers by design, or is what the command decides.
FREE = ("model.", "optim.", "objective.", "parallel.", "data.batch_size", "log.")
Say = Callable[[str], None]


class EqualFlopsRun(NamedTuple):
    """One tokenizer's model.

    Attributes:
      parameters: of the model.
      steps: of training.
      tokens: that it was trained on, the same text again included.
      epochs: how often that is the training text.
      flops: of training.
      predicted_bits_per_byte: of the held-out text as tokens.
      bits_per_byte: the same and, where a token is unknown, its text at 8 bits a byte.
    """

    parameters: int
    steps: int
    tokens: int
    epochs: float
    flops: float
    predicted_bits_per_byte: float
    bits_per_byte: float


def small_experiment(
    corpus: Path, *, fraction: float, seed: int, overrides: Sequence[tuple[str, str]]
) -> ExperimentConfig:
    """Returns what every tokenizer's model is trained with, but for its steps.

    Raises a `UserError` for an override of what the comparison itself decides.
    """
    config = default_config()
    config.seed = seed
    config.model.width = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.context_length = 128
    config.data.path = str(corpus)
    config.data.validation_fraction = fraction
    config.data.cache_dir = str(corpus.parent / "cache")
    config.data.batch_size = 16
    config.optim.learning_rate = 3e-3
    config.log.writers = ()
    for key, text in overrides:
        if not key.startswith(FREE):
            raise UserError(
                f"--config.{key} cannot be set here, it is what is compared or made "
                f"equal; what can begins with one of {', '.join(FREE)}"
            )
        override(config, key, text)
    return freeze(config)


def with_budget(
    config: ExperimentConfig, vocab_size: int, train_flops: float
) -> ExperimentConfig:
    """Returns the experiment with the steps that `train_flops` buy for a vocabulary.

    Warm-up takes a tenth of them, and all rows are of one length. Raises a `UserError`
    where they are too few to learn.
    """
    if not 0 < train_flops < math.inf:
        raise UserError(f"--train_flops={train_flops} must be a number such as 1e13")
    step = flops_per_step(config, vocab_size)
    steps = round(train_flops / step)
    if steps < FEWEST_STEPS:
        raise UserError(
            f"--train_flops={train_flops:g} buys {steps} steps with a vocabulary of "
            f"{vocab_size:,}, of {step:.2e} each; give {FEWEST_STEPS * step:.0e} or "
            "more, a smaller model or a smaller batch"
        )
    return dataclasses.replace(
        config,
        steps=steps,
        data=dataclasses.replace(config.data, row_lengths=()),
        optim=dataclasses.replace(config.optim, warmup_steps=max(1, steps // 10)),
        evals=dataclasses.replace(config.evals, every_steps=steps, batches=1),
        checkpoint=dataclasses.replace(config.checkpoint, save_every_steps=steps),
    )


def flops_per_step(config: ExperimentConfig, vocab_size: int) -> float:
    """Returns the training FLOPs of one step."""
    tokens = config.data.batch_size * config.model.context_length
    return tokens * flops_per_token(resolve(config.model, vocab_size=vocab_size))


def train_model(
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    measure: TokenizerMeasure,
    train_tokens: int,
) -> EqualFlopsRun:
    """Trains the model of one tokenizer in the new `folder` and returns its result.

    `measure` is that of the tokenizer on the held-out text, `train_tokens` what it
    makes of the other.
    """
    from lmx.run.train import train

    tokenizer.save(folder / "given")
    data = dataclasses.replace(config.data, tokenizer=str(folder / "given"))
    config = dataclasses.replace(config, data=data)
    said: list[str] = []
    summary = train(config, folder / "run", say=said.append)
    model = resolve(config.model, vocab_size=tokenizer.vocab_size)
    tokens = config.steps * config.data.batch_size * model.context_length
    bits = summary["validation"]["bits_per_byte"]
    return EqualFlopsRun(
        parameters=parameter_count(model),
        steps=config.steps,
        tokens=tokens,
        epochs=tokens / max(1, train_tokens),
        flops=config.steps * flops_per_step(config, tokenizer.vocab_size),
        predicted_bits_per_byte=bits,
        bits_per_byte=bits + hidden_bits_per_byte(measure),
    )
