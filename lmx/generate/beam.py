"""Beam search: the most probable continuation that a few parallel ones lead to.

It draws nothing: temperature, cuts and seeds have no part in it. Scores are sums of
log-probabilities over length^penalty (Wu et al. 2016, arXiv:1609.08144, with the length
alone), and the rules of who is kept and when to stop are those of transformers with
`early_stopping=False`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.model_schema import Architecture
from lmx.generate import cache as caches
from lmx.generate.decode import Generation, Generator, Session
from lmx.generate.sampling import SamplingConfig
from lmx.generate.weights import decoding_logits
from lmx.models.decoder import Decoder

NOTHING = -1e9  # the score of a beam that there is not


@dataclasses.dataclass(frozen=True)
class Beam:
    """A continuation: its tokens, and the log-probability of each."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    def then(self, token: int, logprob: float) -> Beam:
        """Returns the beam with a token more."""
        return Beam((*self.tokens, token), (*self.logprobs, logprob))


def beam_search(
    generator: Generator, prompt: Sequence[int], config: SamplingConfig
) -> list[Generation]:
    """Returns `config.beams` continuations of the prompt, the best first.

    Of `config` only beams, length_penalty, max_new_tokens and long_prompt count.
    """
    session = generator.start([prompt], dataclasses.replace(config, temperature=0))
    width, ends = config.beams, frozenset(generator.eos_ids)
    # So many that, were the best to end, enough are left to go on with.
    count = min(width * max(2, 1 + len(ends)), width * generator.config.vocab_size)
    search = _Search(generator, session, width=width, count=count)
    running, scores = [Beam()] * width, [0.0] + [NOTHING] * (width - 1)
    done: list[tuple[float, Beam]] = []
    for length in range(1, search.room + 1):
        found = search.extend(scores)
        full = length == search.room
        longer: list[Beam] = []
        kept: list[float] = []
        parents: list[int] = []
        for rank, (total, logprob, parent, token) in enumerate(found):
            if total < NOTHING / 2:
                break  # no more texts than these
            beam = running[parent].then(token, logprob)
            if token in ends or full:
                if rank < width:
                    done.append((total / length**config.length_penalty, beam))
            elif len(longer) < width:
                longer.append(beam)
                kept.append(total)
                parents.append(parent)
        done = sorted(done, key=lambda pair: -pair[0])[:width]
        if not longer:
            break
        # Too few are left where the vocabulary is smaller than the beams are many.
        spare = width - len(longer)
        running = longer + [longer[0]] * spare
        scores, parents = kept + [NOTHING] * spare, parents + [parents[0]] * spare
        best = scores[0] / length**config.length_penalty
        if len(done) == width and best <= done[-1][0]:
            break
        search.choose(parents, [beam.tokens[-1] for beam in running])
    return [
        Generation(
            list(beam.tokens),
            list(beam.logprobs),
            "eos" if beam.tokens[-1] in ends else "length",
        )
        for _, beam in done
    ]


class _Search:
    """The model's side of a search: the caches of all beams, one step at a time.

    Attributes:
      room: the most tokens that may be added.
    """

    def __init__(
        self, generator: Generator, session: Session, *, width: int, count: int
    ):
        self._generator, self._count = generator, count
        state, self._slots = session.prefilled()
        self._cache = state.cache
        self._length = int(state.position_B[0]) + 1
        self._limit = int(state.limit_B[0])
        self.room = self._limit - self._length
        self.choose([0] * width, [int(state.token_B[0])] * width)

    def choose(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        """Goes on with these beams, each with the token that it was given."""
        self._parents = np.asarray(parents, np.int32)
        self._tokens = np.asarray(tokens, np.int32)

    def extend(self, scores: Sequence[float]) -> list[tuple[float, float, int, int]]:
        """Returns the best next tokens: (sum, log-probability, beam, token), in order.

        `scores` are the sums of the beams so far.
        """
        config = self._generator.config
        slots = caches.slots_for(config, self._length)
        if slots > self._slots:
            shape = {"slots": slots, "piece": caches.LARGEST_PIECE}
            self._cache = caches.grow(self._cache, config=config, **shape)
            self._slots = slots
        self._cache, *best = _extend(
            self._generator.params,
            self._cache,
            self._parents,
            self._tokens,
            np.int32(self._length - 1),
            np.int32(self._limit),
            np.asarray(scores, np.float32),
            config=config,
            count=self._count,
        )
        self._length += 1
        return list(zip(*(x.tolist() for x in jax.device_get(best)), strict=True))


@functools.partial(jax.jit, static_argnames=("config", "count"))
def _extend(
    params: Any,
    cache: Any,
    parents_K,
    tokens_K,
    position,
    limit,
    scores_K,
    *,
    config: Architecture,
    count: int,
):
    """Feeds each beam its token, after the cache of its parent; returns the best."""
    K = tokens_K.shape[0]
    cache = jax.tree.map(lambda plane: plane[:, parents_K], cache)
    hidden_KLD, cache = Decoder(config).apply(
        {"params": params},
        tokens_K[:, None],
        positions=jnp.full((K, 1), position),
        cache=cache,
        lengths=caches.grown(
            config, now=jnp.full(K, position + 1), limit=jnp.full(K, limit)
        ),
    )
    logits_KV = decoding_logits(config, params, hidden_KLD[:, 0])
    logprobs_KV = jax.nn.log_softmax(logits_KV)
    totals, index = jax.lax.top_k((scores_K[:, None] + logprobs_KV).ravel(), count)
    V = logits_KV.shape[1]
    return cache, totals, logprobs_KV.ravel()[index], index // V, index % V
