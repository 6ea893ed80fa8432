"""EleutherAI's lm-evaluation-harness runs its tasks on a model of lmx.

It asks for three things: log-likelihoods of continuations, of whole texts in rolling
windows, and texts up to stop strings. Tasks, prompts and metrics are the harness's.
Importing this needs lm-eval (extra `harness`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from lmx.core.errors import UserError
from lmx.evaluate.likelihood import likelihoods
from lmx.evaluate.pairs import beginning, encode_pairs, encode_texts, rolling, start_id
from lmx.evaluate.runner import Subject, write
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import Completion

NEW_TOKENS = 256  # of a task that does not say, as the harness's own models have it


class HarnessModel(LM):
    """What the harness takes for a model; `watch` is told what is done."""

    def __init__(self, subject: Subject, *, watch: Callable[[str, int, int], None]):
        super().__init__()
        self._subject, self._watch = subject, watch
        self._markup = False  # until the harness asks for the chat template

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns (log p, is it greedy) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        tokenizer = self._subject.tokenizer
        found = likelihoods(
            self._subject.generator,
            encode_pairs(tokenizer, pairs, markup=self._markup),
            watch=lambda done, total: self._watch("harness: reading", done, total),
        )
        return [(score.nats, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Returns log p of each text; windows are as long as the context."""
        generator, tokenizer = self._subject.generator, self._subject.tokenizer
        texts = [request.args[0] for request in requests]
        size, start = generator.config.context_length, start_id(tokenizer)
        windows = [
            rolling(ids, start=start, size=size)
            for ids in tokenizer.encode_batch(texts)
        ]
        flat = [window for mine in windows for window in mine]
        scores = iter(
            likelihoods(
                generator,
                flat,
                watch=lambda done, total: self._watch("harness: reading", done, total),
            )
        )
        return [sum(next(scores).nats for _ in mine) for mine in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns what follows each context, up to its stop strings."""
        groups: dict[SamplingConfig, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(index)
        found: dict[int, str] = {}
        for sampling, members in groups.items():
            texts = [requests[index].args[0] for index in members]
            for index, done in zip(
                members, self._written(texts, sampling), strict=True
            ):
                found[index] = done.text
        return [found[index] for index in range(len(requests))]

    def _written(
        self, texts: Sequence[str], sampling: SamplingConfig
    ) -> list[Completion]:
        tokenizer = self._subject.tokenizer
        encoded = encode_texts(tokenizer, texts, markup=self._markup)
        return write(
            self._subject,
            [[*beginning(tokenizer, ids), *ids] for ids in encoded],
            sampling,
            watch=lambda done, total: self._watch("harness: writing", done, total),
        )

    def _sampling(self, options: dict[str, Any]) -> SamplingConfig:
        """Returns how a task of the harness wants texts written."""
        stop = options.get("until") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        drawn = options.get("do_sample", options.get("temperature", 0) > 0)
        context = self._subject.generator.config.context_length
        wanted = options.get("max_gen_toks", options.get("max_new_tokens", NEW_TOKENS))
        return SamplingConfig(
            temperature=float(options.get("temperature", 1.0)) if drawn else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            top_k=options.get("top_k"),
            max_new_tokens=min(int(wanted), context // 2),
            stop=tuple(text for text in stop if text),
            long_prompt="cut",
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the conversation as the model's template writes it."""
        if self._subject.template is None:
            raise UserError(
                "--chat: this model has no chat template; leave it out, or evaluate a "
                "model that was tuned to chat"
            )
        self._markup = True
        return self._subject.template.render(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns the source of the template, which the harness records."""
        template = self._subject.template
        return "" if template is None or not chat_template else template.source

    @property
    def tokenizer_name(self) -> str:
        """Returns what caches of the harness go by."""
        return self._subject.tokenizer.fingerprint
