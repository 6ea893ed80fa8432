"""The Python face of lmx: `load` a trained model, `train` one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from lmx.core import config as configs
from lmx.core.errors import CheckpointError, DataError, UserError
from lmx.core.schema import ExperimentConfig
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import complete, stream
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.sizes import resolve

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class LanguageModel:
    """Weights, a tokenizer and a config: what it takes to read and write text.

    Attributes:
      config: the experiment's `ExperimentConfig`, all numbers resolved.
      model: its `Architecture`.
      params: nested dict of arrays, named as in checkpoints.
      tokenizer: text ↔ token ids.
      step: the training step of the weights.
    """

    def __init__(
        self, config: ExperimentConfig, params: Any, tokenizer: Tokenizer, *, step: int
    ):
        self.config = config
        self.model = model = resolve(config.model)
        self.params = params
        self.tokenizer = tokenizer
        self.step = step
        self._generator = Generator(
            model,
            params,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
        )
        self._logits: Callable | None = None

    @overload
    def generate(self, prompt: str, **sampling: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **sampling: Any) -> list[str]: ...

    def generate(self, prompt, **sampling):
        """Returns what follows a prompt, or each of a list of prompts.

        `sampling` are the fields of `SamplingConfig`: temperature, top_k, top_p, min_p,
        repetition_penalty, max_new_tokens, stop, seed.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings = sampling_config(sampling)
        done = complete(self._generator, self.tokenizer, prompts, settings)
        texts = [completion.text for completion in done]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Yields what follows the prompt piece by piece, as it is written."""
        settings = sampling_config(sampling)
        yield from stream(self._generator, self.tokenizer, prompt, settings)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Returns float32 [L, V]: the scores of the token after each of `token_ids`.

        Raises:
          UserError: an id is not in the vocabulary, or there are none or too many.
        """
        import jax

        from lmx.models.decoder import Decoder, head_logits

        model = self.model
        tokens_L = np.asarray(token_ids, np.int64)
        if tokens_L.ndim != 1 or not 1 <= len(tokens_L) <= model.context_length:
            raise UserError(
                f"token_ids has shape {tokens_L.shape}; give a list of 1 to "
                f"{model.context_length} ids (model.context_length)"
            )
        if tokens_L.min() < 0 or tokens_L.max() >= model.vocab_size:
            raise UserError(
                f"token ids must lie in 0..{model.vocab_size - 1}; found "
                f"{tokens_L.min()}..{tokens_L.max()}"
            )
        if self._logits is None:
            decoder = Decoder(model)

            def score(params, tokens_BL):
                hidden: Any = decoder.apply({"params": params}, tokens_BL)
                return head_logits(model, params, hidden)

            self._logits = jax.jit(score)
        # Causality: what is padded on the right changes nothing on the left.
        length = min(model.context_length, 1 << (len(tokens_L) - 1).bit_length())
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens_L)] = tokens_L
        return np.asarray(self._logits(self.params, padded))[0, : len(tokens_L)]


def sampling_config(values: dict[str, Any]) -> SamplingConfig:
    """Returns the `SamplingConfig` of keyword arguments, or names the wrong one."""
    known = SamplingConfig.__dataclass_fields__
    for name in values:
        if name not in known:
            from lmx.core.errors import did_you_mean

            raise UserError(
                f"unknown sampling option {name!r}{did_you_mean(name, known)}"
            )
    return SamplingConfig(**values)


def load(workdir: str | Path, *, step: int | None = None) -> LanguageModel:
    """Returns the model that was trained in `workdir`.

    The newest checkpoint that verifies is used, or that of `step`; averaged weights
    are preferred where the run kept them.

    Raises:
      UserError: `workdir` holds no run.
      CheckpointError: it holds no checkpoint that can be used.
      DataError: its tokenizer is not the one that the checkpoint was trained with.
    """
    from lmx.training.checkpoints import Checkpoints

    folder = Path(workdir)
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
        trained_with = checkpoints.facts(step).get("tokenizer")
        if trained_with != tokenizer.fingerprint:
            raise DataError(
                f"{folder}/tokenizer is not the tokenizer of checkpoint {step}; "
                "restore the folder from the run that trained it"
            )
        params = checkpoints.restore_params(step)
    return LanguageModel(config, params, tokenizer, step=step)


def train(config: ConfigDict | ExperimentConfig, workdir: str | Path) -> LanguageModel:
    """Trains `config` in `workdir`, resuming what is there, and returns the model."""
    from lmx.run.train import train as run

    if not isinstance(config, ExperimentConfig):
        config = configs.freeze(config)
    run(config, workdir)
    return load(workdir)
