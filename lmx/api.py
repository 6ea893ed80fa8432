"""The Python face of lmx: `load` a trained model, `train` one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from lmx.core import config as configs
from lmx.core.errors import UserError, pick
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ExperimentConfig
from lmx.finetune.adapter import Change
from lmx.finetune.peft import is_peft
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import complete, stream
from lmx.generate.weights import QUANTIZED, Quantize
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.chat_tokens import encode_chat
from lmx.inputs.examples import chat_template
from lmx.inputs.tokenizers import Tokenizer
from lmx.interop.weights import Watch, unwatched
from lmx.models.checks import check_causal
from lmx.models.sizes import resolve
from lmx.run.subject import generator_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from lmx.evaluate.results import Result


# A question has an answer: at 0.7 a small model draws it only now and then.
CHAT_SAMPLING = {"temperature": 0.0}


class LanguageModel:
    """Weights, a tokenizer and a config: what it takes to read and write text.

    Attributes:
      config: the experiment's `ExperimentConfig`, all numbers resolved.
      model: its `Architecture`.
      params: nested dict of arrays, named as in checkpoints.
      tokenizer: text ↔ token ids.
      step: the training step of the weights.
      chat_template: the Jinja text that makes a prompt of a conversation, or None.
      quantize: the bits of the weights that write text; `params` stay what they are.
      family: the Hugging Face `model_type` that it was imported as, or None.
      change: the adapter that was joined with a model to give `params`, or None.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        params: Any,
        tokenizer: Tokenizer,
        *,
        step: int = 0,
        chat_template: str | None = None,
        quantize: Quantize = None,
        family: str | None = None,
        change: Change | None = None,
    ):
        self.config = config
        self.model = resolve(config.model)
        self.params = params
        self.tokenizer = tokenizer
        self.step = step
        self.chat_template = chat_template
        self.quantize = quantize
        self.family = family
        self.change = change
        self._logits: Callable | None = None

    @functools.cached_property
    def _generator(self) -> Generator:
        """Made when first used: it keeps copies of the weights."""
        return generator_of(self)

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

    def stream(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[str]:
        """Yields what follows the prompt piece by piece, as it is written."""
        settings = sampling_config(sampling)
        yield from stream(self._generator, self.tokenizer, prompt, settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> str:
        """Returns the reply to a conversation.

        `messages` are {"role": "user" | "assistant" | "system", "content": text};
        `sampling` is that of `generate`, and greedy unless it says otherwise.

        Raises:
          UserError: the model has no chat template, or the template refuses.
        """
        sampling = {**CHAT_SAMPLING, **sampling}
        return "".join(self.stream(self.chat_prompt(messages), **sampling))

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the token ids with which a conversation asks for a reply.

        A message that spells a special token stays text.
        """
        check_causal(self.model, "a reply")
        return encode_chat(self._template, self.tokenizer, messages)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        """The chat template; raises a `UserError` where there is none."""
        if self.chat_template is None:
            raise UserError(
                "this model has no chat template; import one that was tuned to chat, "
                "or use generate"
            )
        return chat_template(self.tokenizer, self.chat_template)

    def evaluate(
        self, tasks: str | Sequence[str], data: str | Mapping[str, str] = {}, **settings
    ) -> dict[str, Result]:
        """Returns the result of each task by its name: `summary` and `samples`.

        `data` is a folder of data files, or task → file; `settings` are dtype, limit,
        shots, chat and seed.
        """
        from lmx.run.subject import evaluate_all

        return evaluate_all(self, tasks, data, **settings)

    def logprobs(self, text: str, *, prompt: str = "") -> np.ndarray:
        """Returns float32 [L]: log p of each token of `text` after those before it.

        These are those of `prompt`, encoded on its own as `generate` does. Without one
        the first token counts where the tokenizer begins texts with one of its own.
        """
        given = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        ids = [*given, *self.tokenizer.encode(text)]
        first = max(1, len(given))
        if len(ids) <= first:
            return np.zeros(0, np.float32)
        logits_LV = self.logits(ids[:-1], prompt_tokens=first)[first - 1 :]
        top_L = logits_LV.max(axis=-1)
        log_z_L = top_L + np.log(np.exp(logits_LV - top_L[:, None]).sum(axis=-1))
        return logits_LV[np.arange(len(ids) - first), ids[first:]] - log_z_L

    def embed(
        self, texts: str | Sequence[str], *, pooling: str | None = None
    ) -> np.ndarray:
        """Returns float32 [n, D]: each text as a vector, near those of like meaning.

        It is made of the final hidden states as `model.pooling` says, or `pooling`:
        their mean, the first or the last, with '_unit' scaled to length 1. Encoders
        come with theirs; of a decoder, 'last_unit' is the one state that saw the whole
        text, and without training for it neither is a good embedding.

        Raises:
          UserError: a text is longer than the context, or has no tokens: an empty one
            that gets none to begin or end with.
        """
        from lmx.generate.embedding import embed

        tokenizer = self.tokenizer
        rows = [
            [*tokenizer.prefix_ids, *ids, *tokenizer.suffix_ids]
            for ids in tokenizer.encode_batch(
                [texts] if isinstance(texts, str) else list(texts)
            )
        ]
        return embed(self.model, self.params, rows, pooling=pooling)

    def reward(
        self, replies: Sequence[str | Sequence[Mapping[str, Any]]], *, prompt: str = ""
    ) -> np.ndarray:
        """Returns float32 [n]: how good a reward model finds each reply to `prompt`.

        A reply is a text that follows the prompt, or a conversation, which has its
        prompt in it and needs a chat template; it is read as pairs were in training.

        Raises:
          UserError: this is no reward model, or it was never trained; a reply is empty,
            or longer than the context.
        """
        from lmx.finetune.reward import read_ids, rewards

        if isinstance(replies, str):
            raise UserError("replies is one text; give a list of them: [text]")
        rows = [
            read_ids(reply, prompt, self.tokenizer, lambda: self._template)
            for reply in replies
        ]
        return rewards(self.model, self.params, rows)

    def save(
        self,
        directory: str | Path,
        *,
        to: Literal["hf", "gguf", "peft"] = "hf",
        dtype: str = "float32",
        watch: Watch = unwatched,
    ) -> Path:
        """Writes the model in a published format and returns where it is.

        'hf' makes a directory for Hugging Face transformers, 'gguf' a file
        `model.gguf` in it for llama.cpp. See `lmx.interop.export.export`. 'peft' writes
        an adapter alone, in float32, for the model that it was trained on.
        `watch(what, done, total)` is told how many bytes are done.

        Raises:
          UserError: the format cannot express it, or there is no adapter.
        """
        if to == "peft":
            return self._save_change(Path(directory))
        from lmx.interop.export import export

        return export(
            directory,
            to=to,
            dtype=dtype,
            model=self.model,
            params=self.params,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template,
            family=self.family,
            watch=watch,
        )

    def _save_change(self, folder: Path) -> Path:
        from lmx.core.new_folder import new_folder
        from lmx.finetune.peft import write_peft

        if self.change is None:
            raise UserError(
                "this model was trained whole and has no adapter to write; save it "
                "with to='hf'"
            )
        base = str(self.config.model.init_from)
        with new_folder(folder.absolute()) as new:
            write_peft(new.path, self.change, base=base, family=self.family)
        return folder.absolute()

    def logits(self, token_ids: Sequence[int], *, prompt_tokens: int = 1) -> np.ndarray:
        """Returns float32 [L, V]: the scores of the token after each of `token_ids`.

        The first `prompt_tokens` are a prompt: with 'prefix' attention they see each
        other, and only the scores after the last of them are of a token unseen.

        Raises:
          UserError: an id is not in the vocabulary, or there are none or too many.
        """
        import jax

        from lmx.models.decoder import Decoder, head_logits
        from lmx.models.moe import dropless

        model = self.model
        check_causal(model, "the score of a next token")
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
        if not 0 <= prompt_tokens <= len(tokens_L):
            raise UserError(
                f"prompt_tokens={prompt_tokens} must lie in 0..{len(tokens_L)}, the "
                "tokens that there are"
            )
        if self._logits is None:
            decoder = Decoder(dropless(model))

            def score(params, tokens_BL, prompt_tokens):
                place_BL = np.arange(tokens_BL.shape[1])[None]
                prefix = place_BL < prompt_tokens
                hidden: Any = decoder.apply(
                    {"params": params},
                    tokens_BL,
                    prefix=prefix if model.attention == "prefix" else None,
                )
                return head_logits(model, params, hidden)

            self._logits = jax.jit(score)
        # Causality: what is padded on the right changes nothing on the left.
        length = min(model.context_length, 1 << (len(tokens_L) - 1).bit_length())
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens_L)] = tokens_L
        found = self._logits(self.params, padded, prompt_tokens)
        return np.asarray(found)[0, : len(tokens_L)]


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


def load(
    name: str | Path,
    *,
    step: int | None = None,
    like: Any = None,
    quantize: Quantize = None,
    base: str | Path | None = None,
) -> LanguageModel:
    """Returns a model: of a workdir, or a published one.

    `name` is the workdir of a run or an import, a Hugging Face directory, a `.gguf`
    file, a Hub name, or the folder of an adapter of peft. Of a workdir the newest
    checkpoint that verifies is used, or that of `step`; averaged weights are preferred
    where the run kept them. Abstract parameters `like` these (jax.ShapeDtypeStruct)
    give them dtypes and shardings: each shard is read straight to its device.
    `quantize` 'int8' or 'int4' has text written with weights of so many bits. An
    adapter is joined with the model that it was trained on, of which `base` says where
    it is now, should it have moved.

    Raises:
      UserError: there is no model of this name.
      CheckpointError: a workdir holds no checkpoint that can be used.
      DataError: its tokenizer is not the one that the checkpoint was trained with, or
        the model that it was trained on has changed, or a published file is damaged.
    """
    if quantize is not None:
        pick(QUANTIZED, quantize, "quantize")
    folder = Path(name)
    if (folder / "checkpoints").is_dir() or (folder / "tokenizer").is_dir():
        from lmx.run.load import load_workdir

        return load_workdir(folder, step, like, quantize, base)
    if is_peft(folder):
        from lmx.run.load import load_peft

        return load_peft(folder, step, like, quantize, base)
    from lmx.interop.pretrained import open_pretrained

    if folder.is_dir() and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds no run and no published model; train one there with "
            f"lmx train --workdir={folder}"
        )
    found = open_pretrained(name)
    if step is not None:
        raise UserError(
            f"step={step}: {name} is a published model, which has no checkpoints; "
            "leave the step out"
        )
    return LanguageModel(
        imported_config(found.model),
        found.params(like=like),
        found.tokenizer,
        chat_template=found.chat_template,
        quantize=quantize,
        family=found.family,
    )


def imported_config(model: ModelConfig) -> ExperimentConfig:
    """Returns an experiment's config around the model options of an imported model."""
    names = ModelConfig.__dataclass_fields__
    options = ModelConfig(**{name: getattr(model, name) for name in names})
    return dataclasses.replace(ExperimentConfig(), model=options)


def train(config: ConfigDict | ExperimentConfig, workdir: str | Path) -> LanguageModel:
    """Trains `config` in `workdir`, resuming what is there, and returns the model."""
    from lmx.run.train import train as run

    if not isinstance(config, ExperimentConfig):
        config = configs.freeze(config)
    run(config, workdir)
    return load(workdir)
