"""From logits to a token: the sampling settings, the logits processors, the draw.

The processors are pure functions on float32 logits [B, V] and are applied in this
order, each on the distribution that the one before left:

    repetition penalty → temperature → top-k → top-p → min-p → draw

A removed token has logit −inf. Among equal logits the lower token id comes first, so
exactly k tokens survive top-k. Settings are traced values, scalars or one per row [B]:
changing them compiles nothing. It knows no model and no cache.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.errors import UserError

COLDEST = 1e-6  # positive temperatures below are taken as this: 1 / T stays finite
SEEDS = 2**32
MOST_BEAMS = 64  # each has a cache of its own


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen and when to stop.

    Attributes:
      temperature: divides the logits; 0 always takes the most probable token.
      top_k: keep the k most probable tokens; None keeps all.
      top_p: keep the fewest most probable tokens that hold this share of probability.
      min_p: drop tokens less probable than this share of the most probable one's.
      repetition_penalty: above 1 lowers the logits of tokens already in the text,
        the prompt's included; 1 leaves them.
      beams: above 1 searches for the most probable text with so many at once, and
        draws nothing: temperature and cuts do not count.
      length_penalty: of beams: scores are divided by length to this power; above 0
        favours longer texts.
      max_new_tokens: the most tokens to add; the context length may end it sooner.
      stop: strings that end the text; the first one found is cut off.
      seed: decides every draw, with the row's number and the token's position.
      long_prompt: what to do where prompt and max_new_tokens exceed the context:
        'refuse' a prompt that leaves no room for one token, and else stop when the
        context is full; or 'cut' the prompt's first tokens until both fit.

    Raises a `UserError` for a value outside its range.
    """

    temperature: float = 0.7
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    long_prompt: Literal["refuse", "cut"] = "refuse"

    def __post_init__(self):
        for name, holds, must in (
            ("temperature", lambda x: x >= 0, "at least 0; 0 is greedy"),
            ("top_p", lambda x: 0 < x <= 1, "in (0, 1]; 1 keeps all tokens"),
            ("min_p", lambda x: 0 <= x <= 1, "in [0, 1]; 0 keeps all tokens"),
            ("repetition_penalty", lambda x: x > 0, "above 0; 1 changes nothing"),
            ("length_penalty", lambda x: True, "; 0 leaves scores alone"),
        ):
            value = getattr(self, name)
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (real and math.isfinite(value) and holds(value)):
                raise UserError(f"{name}={value!r} must be a number {must}")
        for name, least, most in (
            ("top_k", 1, None),
            ("beams", 1, MOST_BEAMS),
            ("max_new_tokens", 1, None),
            ("seed", 0, SEEDS - 1),
        ):
            value = getattr(self, name)
            if value is None and name == "top_k":
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least and (most is None or value <= most)):
                upto = "" if most is None else f" and at most {most}"
                hint = "; None keeps all tokens" if name == "top_k" else ""
                raise UserError(
                    f"{name}={value!r} must be a whole number, at least {least}"
                    f"{upto}{hint}"
                )
        if self.beams > 1 and self.repetition_penalty != 1:
            raise UserError(
                f"repetition_penalty={self.repetition_penalty} does not go with "
                f"beams={self.beams}; leave it 1, or search with beams=1"
            )
        self._check_words()

    def _check_words(self):
        if isinstance(self.stop, str) or not all(isinstance(s, str) for s in self.stop):
            raise UserError(
                f"stop={self.stop!r} must be a sequence of strings; write stop=('x',)"
            )
        if "" in self.stop:
            raise UserError(
                "stop has an empty string, which ends every text; remove it"
            )
        object.__setattr__(self, "stop", tuple(self.stop))
        if self.long_prompt not in ("refuse", "cut"):
            raise UserError(
                f"long_prompt={self.long_prompt!r} must be 'refuse' or 'cut'"
            )


class Settings(NamedTuple):
    """The numbers of a `SamplingConfig`, traced: scalars or one per row [B]."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    seed: Any


def settings(config: SamplingConfig, vocab_size: int) -> Settings:
    """Returns the traced part of `config`; top_k=None becomes the whole vocabulary."""
    top_k = vocab_size if config.top_k is None else min(config.top_k, vocab_size)
    return Settings(
        temperature=np.float32(config.temperature),
        top_k=np.int32(top_k),
        top_p=np.float32(config.top_p),
        min_p=np.float32(config.min_p),
        repetition_penalty=np.float32(config.repetition_penalty),
        seed=np.uint32(config.seed),
    )


def penalize_repetition(logits_BV, seen_BV, penalty):
    """Divides positive and multiplies negative logits of seen tokens by `penalty`.

    Keskar et al. 2019 (arXiv:1909.05858, section 4.1), with the product for negative
    logits that makes a penalty lower them too. `seen_BV` is boolean.
    """
    penalty = _column(penalty)
    lowered = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered, logits_BV)


def apply_temperature(logits_BV, temperature):
    """Returns (logits − largest) / temperature: shifted first, so nothing overflows.

    Temperature 0 is not a distribution; `sample` takes the largest logit instead.
    """
    shifted = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    return shifted / jnp.maximum(_column(temperature), COLDEST)


def keep_top_k(logits_BV, k):
    """Removes all but the k ≥ 1 largest logits (Fan et al. 2018, arXiv:1805.04833)."""
    return _keep_first(logits_BV, _rank(logits_BV), _column(k))


def keep_top_p(logits_BV, p):
    """Keeps the fewest largest logits whose probabilities sum to at least p.

    The nucleus of Holtzman et al. 2019 (arXiv:1904.09751); at least one token stays.
    """
    ranked = _rank(logits_BV)
    return _keep_first(logits_BV, ranked, _nucleus(ranked.logits_BV, p))


def keep_min_p(logits_BV, p):
    """Removes tokens less probable than p times the most probable one.

    Nguyen et al. 2024 (arXiv:2407.01082).
    """
    floor = logits_BV.max(axis=-1, keepdims=True) + jnp.log(_column(p))
    return jnp.where(logits_BV >= floor, logits_BV, -jnp.inf)


def process(logits_BV, seen_BV, settings: Settings):
    """Returns the logits that are drawn from, after every processor in order.

    The vocabulary is sorted once, and only where top-k or top-p asks for it.
    """
    s = settings
    logits_BV = penalize_repetition(logits_BV, seen_BV, s.repetition_penalty)
    logits_BV = apply_temperature(logits_BV, s.temperature)

    def cut(logits_BV):
        ranked = _rank(logits_BV)
        k = _column(s.top_k)
        among = jnp.where(_places(logits_BV) < k, ranked.logits_BV, -jnp.inf)
        return _keep_first(logits_BV, ranked, jnp.minimum(k, _nucleus(among, s.top_p)))

    asked = jnp.any(s.top_k < logits_BV.shape[-1]) | jnp.any(s.top_p < 1)
    logits_BV = jax.lax.cond(asked, cut, lambda x: x, logits_BV)
    return keep_min_p(logits_BV, s.min_p)


def sample(logits_BV, seen_BV, settings: Settings, *, rows_B, positions_B):
    """Returns the chosen token of each row, int32 [B].

    A row's random numbers come from (seed, its number in `rows_B`, the position its
    token will have): neither its neighbours nor any padding can change them. The draw
    adds Gumbel noise and takes the largest (Gumbel 1954; Maddison et al. 2014).
    """
    s = settings

    def draw(logits_BV):
        processed_BV = process(logits_BV, seen_BV, s)
        seeds_B = jnp.broadcast_to(jnp.asarray(s.seed, jnp.uint32), rows_B.shape)
        noise_BV = jax.vmap(_noise, in_axes=(0, 0, 0, None))(
            seeds_B, rows_B, positions_B, logits_BV.shape[-1]
        )
        return jnp.argmax(processed_BV + noise_BV, axis=-1).astype(jnp.int32)

    penalized_BV = penalize_repetition(logits_BV, seen_BV, s.repetition_penalty)
    greedy_B = jnp.argmax(penalized_BV, axis=-1).astype(jnp.int32)
    cold = jnp.asarray(s.temperature) == 0
    drawn_B = jax.lax.cond(jnp.all(cold), lambda _: greedy_B, draw, logits_BV)
    return jnp.where(cold, greedy_B, drawn_B)


class Ranked(NamedTuple):
    """Logits in falling order, and the token each belongs to: both [B, V]."""

    logits_BV: jax.Array
    tokens_BV: jax.Array


def _noise(seed, row, position, vocab_size: int):
    """Returns Gumbel noise [V] of one (seed, row, position)."""
    key = jax.random.fold_in(jax.random.key(seed), row)
    return jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,))


def _column(value):
    """Returns a scalar or [B] value as float32 or int32 [1 or B, 1]."""
    return jnp.reshape(jnp.asarray(value), (-1, 1))


def _places(logits_BV):
    return jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]


def _rank(logits_BV) -> Ranked:
    """Returns the logits sorted, lower token ids first among equals."""
    tokens_BV = jnp.broadcast_to(_places(logits_BV), logits_BV.shape)
    falling_BV, tokens_BV = jax.lax.sort((-logits_BV, tokens_BV), num_keys=2)
    return Ranked(-falling_BV, tokens_BV)


def _nucleus(ranked_BV, p):
    """Returns how many leading logits hold probability p, int32 [B, 1], at least 1."""
    mass_BV = jnp.cumsum(jax.nn.softmax(ranked_BV, axis=-1), axis=-1)
    short_BV = (mass_BV < _column(p)) & (mass_BV < mass_BV[:, -1:])
    count_B1 = 1 + short_BV.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.where(_column(p) >= 1, ranked_BV.shape[-1], count_B1)


def _keep_first(logits_BV, ranked: Ranked, count_B1):
    """Removes all but the `count_B1` first tokens in rank order.

    Comparing with the last kept (logit, token) needs no scatter back.
    """
    last_B1 = jnp.broadcast_to(count_B1 - 1, (logits_BV.shape[0], 1))
    least_B1 = jnp.take_along_axis(ranked.logits_BV, last_B1, axis=-1)
    token_B1 = jnp.take_along_axis(ranked.tokens_BV, last_B1, axis=-1)
    above_BV = logits_BV > least_B1
    tied_BV = (logits_BV == least_B1) & (_places(logits_BV) <= token_B1)
    return jnp.where(above_BV | tied_BV, logits_BV, -jnp.inf)
