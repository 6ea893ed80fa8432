"""From prompts to new tokens: prefill, then decoding inside one compiled loop.

A `Generator` starts a `Session` for a batch of prompts; each `advance` of the session
is one call of a compiled `while_loop` over up to `chunk` tokens. Prompts are prefilled;
the loop's first step feeds the last token of each. Shapes are padded to powers of two
(rows, prefill pieces, cache slots), so few programs are compiled, whatever the lengths.
It speaks token ids only: text, and strings that end it, are `text.py`.

The context is a hard limit: prompt and new tokens together never exceed
`config.context_length`, and a row that fills it finishes with reason 'length'.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture
from lmx.generate import cache as caches
from lmx.generate.cache import power_of_two
from lmx.generate.sampling import SamplingConfig, Settings, sample, settings
from lmx.generate.weights import Quantize, decoding_logits, for_decoding
from lmx.models.checks import check_causal
from lmx.models.decoder import Decoder

FinishReason = Literal["stop", "eos", "length"]
RUNNING, EOS, FULL, HALTED = 0, 1, 2, 3
REASONS: dict[int, FinishReason] = {EOS: "eos", FULL: "length", HALTED: "stop"}


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was added to one prompt.

    Attributes:
      tokens: the new token ids; an end token is the last of them.
      logprobs: natural log-probability of each under the model itself, before
        temperature, penalties and cuts.
      finish_reason: 'eos' for the end token, 'length' for max_new_tokens or a full
        context, 'stop' where the caller ended the row.
    """

    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


class State(NamedTuple):
    """What one step of decoding hands to the next.

    Attributes:
      cache: keys and values, as `init_cache` lays them out.
      seen_BV: bool, tokens in the text so far.
      token_B: the token to feed next, and `position_B` its position.
      limit_B: number of tokens at which the row is full, prompt included.
      status_B: RUNNING, or why the row ended.

    All are JAX arrays, or NumPy's between two calls.
    """

    cache: Any
    seen_BV: Any
    token_B: Any
    position_B: Any
    limit_B: Any
    status_B: Any


class Generator:
    """A model ready to write.

    `config` is resolved and `params` are its unboxed parameters; kernels and head are
    cast to the compute dtype here, once. Any of `eos_ids` ends a row. `bos_id` stands
    in for an empty prompt. Larger batches than `max_batch` are cut. Generators of equal
    `config` share their compiled programs.
    """

    def __init__(
        self,
        config: Architecture,
        params: Any,
        *,
        eos_ids: Sequence[int],
        pad_id: int = 0,
        bos_id: int | None = None,
        quantize: Quantize = None,
        max_batch: int = 16,
        chunk: int = 32,
    ):
        for name, value in (("max_batch", max_batch), ("chunk", chunk)):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        check_causal(config, "writing")
        self.config, self.params = for_decoding(config, params, quantize=quantize)
        self.eos_ids = tuple(eos_ids)
        self.pad_id, self.bos_id = pad_id, bos_id
        self.max_batch, self.chunk = max_batch, chunk

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Returns what follows each prompt of token ids.

        `rows` number the random streams (default 0, 1, …): the same prompt, seed and
        row number give the same tokens in any batch. Stop strings are `text.py`'s.
        """
        rows = list(range(len(prompts))) if rows is None else list(rows)
        done: list[Generation] = []
        for start in range(0, len(prompts), self.max_batch):
            part = slice(start, start + self.max_batch)
            session = self.start(prompts[part], sampling, rows=rows[part])
            while session.running:
                session.advance()
            done += session.results()
        return done

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        rows: Sequence[int] | None = None,
    ) -> Session:
        """Returns a session over at most `max_batch` prompts, prefilled."""
        if not 1 <= len(prompts) <= self.max_batch:
            raise UserError(
                f"{len(prompts)} prompts in one session: it takes 1 to "
                f"max_batch={self.max_batch}; cut the list or raise max_batch"
            )
        rows = list(range(len(prompts))) if rows is None else list(rows)
        if len(rows) != len(prompts):
            raise UserError(
                f"{len(rows)} row numbers for {len(prompts)} prompts; give one each"
            )
        fitted = [self._fit(prompt, sampling) for prompt in prompts]
        return Session(self, fitted, sampling, rows=rows)

    def _fit(self, prompt: Sequence[int], sampling: SamplingConfig) -> list[int]:
        """Returns the tokens of the prompt that are used, or raises a `UserError`."""
        tokens = [int(token) for token in prompt]
        if not tokens and self.bos_id is None:
            raise UserError(
                "the prompt is empty and the tokenizer has no start token; give a "
                "prompt of at least one token"
            )
        tokens = tokens or [int(self.bos_id or 0)]
        vocabulary = self.config.vocab_size
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise UserError(
                    f"token {token} is not in the vocabulary of {vocabulary}; was the "
                    "prompt encoded with this model's tokenizer?"
                )
        context = self.config.context_length
        if sampling.long_prompt == "cut":
            return tokens[-max(1, context - sampling.max_new_tokens) :]
        if len(tokens) >= context:
            raise UserError(
                f"the prompt has {len(tokens)} tokens and the context holds {context}, "
                f"new ones included; give at most {context - 1}, or set "
                "long_prompt='cut' to keep the last that fit"
            )
        return tokens


class Session:
    """A batch of prompts being continued.

    `advance` adds up to `chunk` tokens to each running row; `halt` ends a row from
    outside; `results` says what came of it all.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: list[list[int]],
        sampling: SamplingConfig,
        *,
        rows: list[int],
    ):
        self._generator = generator
        self._count = len(prompts)
        self._settings = settings(sampling, generator.config.vocab_size)
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]
        padded = power_of_two(len(prompts))
        prompts = prompts + [prompts[0]] * (padded - len(prompts))
        self._rows = np.asarray(rows + [0] * (padded - len(rows)), np.int32)
        self._lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
        self._limits = np.minimum(
            self._lengths + sampling.max_new_tokens, generator.config.context_length
        ).astype(np.int32)
        self._status = np.full(padded, RUNNING, np.int32)
        self._status[self._count :] = HALTED
        # A context of one token is full before it starts.
        self._status[(self._lengths >= self._limits) & (self._status == RUNNING)] = FULL
        self._slots = caches.slots_for(generator.config, int(self._lengths.max()))
        self._state = self._prefill(prompts)

    @property
    def running(self) -> bool:
        """Whether any row still is."""
        return bool((self._status == RUNNING).any())

    def is_running(self, row: int) -> bool:
        """Returns whether the row is."""
        return bool(self._status[row] == RUNNING)

    def halt(self, row: int) -> None:
        """Ends a row; its reason becomes 'stop'."""
        self._status[row] = HALTED

    def prefilled(self) -> tuple[State, int]:
        """Returns the state before the first `advance`, and the slots of its cache."""
        return self._state, self._slots

    def advance(self, steps: int | None = None) -> list[list[int]]:
        """Adds up to `steps` (default and at most `chunk`) tokens; returns the new."""
        generator = self._generator
        steps = min(steps or generator.chunk, generator.chunk)
        state = self._state._replace(status_B=self._status)
        used = int(self._lengths[: self._count].max()) + steps
        used += max(len(tokens) for tokens in self._tokens)
        slots = caches.slots_for(generator.config, used)
        if slots > self._slots:
            shape = {"slots": slots, "piece": caches.LARGEST_PIECE}
            cache = caches.grow(state.cache, config=generator.config, **shape)
            state, self._slots = state._replace(cache=cache), slots
        state, tokens, logprobs, counts = _decode(
            generator.params,
            state,
            self._settings,
            self._rows,
            np.int32(steps),
            end_tokens(generator.eos_ids),
            config=generator.config,
            chunk=generator.chunk,
        )
        self._state = state
        tokens, logprobs, counts, status = jax.device_get(
            (tokens, logprobs, counts, state.status_B)
        )
        self._status = np.array(status)
        new = [tokens[i, : counts[i]].tolist() for i in range(self._count)]
        for i in range(self._count):
            self._tokens[i] += new[i]
            self._logprobs[i] += logprobs[i, : counts[i]].tolist()
        return new

    def results(self) -> list[Generation]:
        """Returns what was added to each prompt; rows still running count as 'stop'."""
        return [
            Generation(tokens, logprobs, REASONS.get(int(status), "stop"))
            for tokens, logprobs, status in zip(
                self._tokens, self._logprobs, self._status, strict=False
            )
        ]

    def _prefill(self, prompts: list[list[int]]) -> State:
        """Returns the state with all but each prompt's last token in the cache."""
        config, params = self._generator.config, self._generator.params
        seen = np.zeros((len(prompts), config.vocab_size), bool)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = True
        cache = caches.prefilled(
            params,
            prompts,
            self._limits,
            config=config,
            slots=self._slots,
            pad_id=self._generator.pad_id,
        )
        last = np.asarray([prompt[-1] for prompt in prompts], np.int32)
        state = State(cache, seen, last, self._lengths - 1, self._limits, self._status)
        # Where the loop leaves it: its program would be compiled again for the second
        # call if the first one's state came from elsewhere.
        devices = jax.tree.leaves(params)[0].devices()
        return jax.device_put(state, *devices) if len(devices) == 1 else state


def end_tokens(eos_ids: Sequence[int]) -> np.ndarray:
    """Returns the ids, padded with one that no token has, to few lengths."""
    padded = np.full(power_of_two(len(eos_ids), at_least=4), -1, np.int32)
    padded[: len(eos_ids)] = eos_ids
    return padded


@functools.partial(
    jax.jit, static_argnames=("config", "chunk"), donate_argnames="state"
)
def _decode(
    params,
    state: State,
    settings: Settings,
    rows_B,
    steps,
    eos_ids_E,
    *,
    config,
    chunk,
):
    """Decodes until `steps` (≤ chunk) tokens are added or every row has ended.

    Returns the state, tokens and log-probabilities [B, chunk], and how many of them
    each row has, [B].
    """
    B = rows_B.shape[0]

    def unfinished(carry):
        step, state, *_ = carry
        return (step < steps) & jnp.any(state.status_B == RUNNING)

    def body(carry):
        step, state, tokens_BC, logprobs_BC, counts_B = carry
        running_B = state.status_B == RUNNING
        state, token_B, logprob_B = _step(
            params, state, settings, rows_B, eos_ids_E=eos_ids_E, config=config
        )
        tokens_BC = tokens_BC.at[:, step].set(token_B)
        logprobs_BC = logprobs_BC.at[:, step].set(logprob_B)
        return step + 1, state, tokens_BC, logprobs_BC, counts_B + running_B

    carry = (
        jnp.int32(0),
        state,
        jnp.zeros((B, chunk), jnp.int32),
        jnp.zeros((B, chunk), jnp.float32),
        jnp.zeros((B,), jnp.int32),
    )
    _, *out = jax.lax.while_loop(unfinished, body, carry)
    return tuple(out)


def _step(params, state: State, settings: Settings, rows_B, *, eos_ids_E, config):
    """Feeds one token per row and samples the next; ended rows stand still."""
    hidden_BLD, cache = Decoder(config).apply(
        {"params": params},
        state.token_B[:, None],
        positions=state.position_B[:, None],
        cache=state.cache,
        lengths=caches.grown(config, now=state.position_B + 1, limit=state.limit_B),
    )
    logits_BV = decoding_logits(config, params, hidden_BLD[:, 0])
    position_B = state.position_B + 1
    token_B = sample(
        logits_BV, state.seen_BV, settings, rows_B=rows_B, positions_B=position_B
    )
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    logprob_B = chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
    running_B = state.status_B == RUNNING
    ended_B = jnp.where(position_B + 1 >= state.limit_B, FULL, RUNNING)
    eos_B = (token_B[:, None] == eos_ids_E).any(axis=-1)
    ended_B = jnp.where(eos_B, EOS, ended_B)
    row_B = jnp.arange(token_B.shape[0])
    state = State(
        cache=cache,
        seen_BV=state.seen_BV.at[row_B, token_B].max(running_B),
        token_B=jnp.where(running_B, token_B, state.token_B),
        position_B=jnp.where(running_B, position_B, state.position_B),
        limit_B=state.limit_B,
        status_B=jnp.where(running_B, ended_B, state.status_B),
    )
    return state, token_B, logprob_B
