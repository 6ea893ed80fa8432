"""Log-likelihoods of continuations: packed, without padding to speak of.

What several requests have in common, all ids but the last, is computed once: choices of
one token cost as much as one. The rest is packed by best fit into rows of a few
lengths, so a short text is not padded to a long one's length and few programs are
compiled. The head is applied at the scored positions only. Token ids only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmx.data.best_fit import best_fit
from lmx.evaluate.pairs import Scored
from lmx.generate.cache import power_of_two
from lmx.generate.decode import Generator
from lmx.generate.weights import decoding_logits
from lmx.models.decoder import Decoder

SHORTEST_ROW, BATCH_TOKENS = 256, 2048
FULL_SHARE = 0.85  # of a row that one input takes
HEAD_ROWS = 256  # positions whose logits are held at once

Watch = Callable[[int, int], None]


class Likelihood(NamedTuple):
    """Of a continuation: its log-probability, and whether greedy decoding writes it."""

    nats: float
    greedy: bool
    cut: int
    """How many ids on the left did not fit the context."""


def likelihoods(
    generator: Generator, requests: Sequence[Scored], *, watch: Watch | None = None
) -> list[Likelihood]:
    """Returns the log-likelihood of the scored ids of each request.

    A request longer than the context loses its first ids. `watch(done, total)` is told
    how many tokens are read.
    """
    config = generator.config
    context, both_ways = config.context_length, config.attention == "prefix"
    nats = np.zeros(len(requests))
    greedy = np.ones(len(requests), bool)
    cuts = [max(0, len(request.ids) - 1 - context) for request in requests]
    shared: dict[Input, list[int]] = {}
    for index, (request, cut) in enumerate(zip(requests, cuts, strict=True)):
        if request.targets:
            prompt = max(0, request.prompt - cut) if both_ways else 0
            key = Input(tuple(request.ids[cut:-1]), prompt)
            shared.setdefault(key, []).append(index)
    inputs = list(shared)
    total, done = sum(len(each.ids) for each in inputs), 0
    for rows in _batches(inputs, context):
        target, found = _targets(rows, inputs, shared, requests)
        log_p, best = _score(
            generator.params,
            rows.tokens,
            rows.segments,
            rows.positions,
            _prefix(rows, inputs) if both_ways else None,
            *_padded(target),
            config=config,
        )
        count = len(found)
        np.add.at(nats, found, np.asarray(log_p, np.float64)[:count])
        np.logical_and.at(greedy, found, np.asarray(best)[:count])
        done += int((rows.segments > 0).sum())
        if watch is not None:
            watch(done, total)
    return [
        Likelihood(float(n), bool(g), cut)
        for n, g, cut in zip(nats, greedy, cuts, strict=True)
    ]


class Input(NamedTuple):
    """What several requests are read after, and how many ids of it are a prompt."""

    ids: tuple[int, ...]
    prompt: int


class _Rows(NamedTuple):
    """Packed inputs, int32 [B, L] each, and where they lie: (input, row, column)."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    places: list[tuple[int, int, int]]


def _batches(inputs: Sequence[Input], context: int) -> Iterator[_Rows]:
    """Yields batches of rows, those of the longest inputs first."""
    classes: dict[int, list[int]] = {}
    for index, (ids, _) in enumerate(inputs):
        row = power_of_two(len(ids), at_least=SHORTEST_ROW)
        if len(ids) < FULL_SHARE * row and row > SHORTEST_ROW:
            row *= 2  # two or three in a row leave less of it empty than one
        classes.setdefault(min(row, context), []).append(index)
    for length, members in sorted(classes.items(), reverse=True):
        sizes = np.array([len(inputs[index].ids) for index in members])
        rows = best_fit(sizes, length)
        held: list[list[int]] = [[] for _ in range(int(rows.max()) + 1)]
        for index, row in zip(members, rows.tolist(), strict=True):
            held[row].append(index)
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(held), size):
            yield _packed(inputs, held[start : start + size], length)


def _packed(inputs: Sequence[Input], held: Sequence[Sequence[int]], length: int):
    """Returns a batch whose rows hold these inputs, and rows of padding to fill it."""
    shape = (power_of_two(len(held)), length)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    places = []
    for row, indices in enumerate(held):
        column = 0
        for number, index in enumerate(indices, start=1):
            ids = inputs[index].ids
            part = slice(column, column + len(ids))
            tokens[row, part], segments[row, part] = ids, number
            positions[row, part] = np.arange(len(ids))
            places.append((index, row, column))
            column += len(ids)
    return _Rows(tokens, segments, positions, places)


def _targets(rows: _Rows, inputs, shared, requests) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row, column, token) of what is scored, int32 [N, 3], and its request."""
    targets, found = [], []
    for index, row, column in rows.places:
        size = len(inputs[index].ids)
        last = column + size - 1
        for number in shared[inputs[index]]:
            # What was cut off by a short context cannot be scored.
            count = min(requests[number].targets, size)
            for back in range(count):
                targets.append((row, last - back, requests[number].ids[-1 - back]))
                found.append(number)
    return np.asarray(targets, np.int32), np.asarray(found)


def _prefix(rows: _Rows, inputs: Sequence[Input]) -> np.ndarray:
    """Returns which tokens are prompts, bool [B, L]."""
    prefix_BL = np.zeros(rows.tokens.shape, bool)
    for index, row, column in rows.places:
        prefix_BL[row, column : column + inputs[index].prompt] = True
    return prefix_BL


def _padded(targets: np.ndarray) -> tuple[np.ndarray, ...]:
    count = power_of_two(len(targets), at_least=HEAD_ROWS)
    padded = np.zeros((count, 3), np.int32)
    padded[: len(targets)] = targets
    return padded[:, 0], padded[:, 1], padded[:, 2]


@functools.partial(jax.jit, static_argnames="config")
def _score(
    params,
    tokens_BL,
    segments_BL,
    positions_BL,
    prefix_BL,
    row_N,
    column_N,
    token_N,
    *,
    config,
):
    """Returns log p of each target, and whether no other token is likelier: [N]."""
    hidden_BLD: Any = Decoder(config).apply(
        {"params": params},
        tokens_BL,
        positions=positions_BL,
        segment_ids=segments_BL,
        prefix=prefix_BL,
    )

    def piece(part):
        row, column, token = part
        logits = decoding_logits(config, params, hidden_BLD[row, column])
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return chosen - log_z, jnp.argmax(logits, axis=-1) == token

    pieces = [x.reshape(-1, HEAD_ROWS) for x in (row_N, column_N, token_N)]
    log_p, best = jax.lax.map(piece, tuple(pieces))
    return log_p.reshape(-1), best.reshape(-1)
