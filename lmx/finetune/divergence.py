"""How far two distributions over the next token are apart, in pieces of a vocabulary.

Logits of neither are ever whole, and the backward pass computes them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmx.models import kernels
from lmx.models.decoder import softcap

Direction = Literal["forward", "reverse"]


class Scores(NamedTuple):
    """What the logits of T tokens are products of.

    Attributes:
      hidden: [T, D].
      head: [V, D].
      softcap: of the model.
    """

    hidden: jax.Array
    head: jax.Array
    softcap: float | None = None


def divergence(
    student: Scores,
    teacher: Scores,
    *,
    direction: Direction,
    chunks: int,
    temperature: float,
    form: str,
) -> jax.Array:
    """Returns KL(teacher ‖ student), or for 'reverse' KL(student ‖ teacher), [T].

    Both are at `temperature`; `chunks` divides the vocabulary that they share. It is
    Σ p (log p − log q), of which a running maximum keeps every sum finite.
    """
    logits = partial(_logits, temperature=temperature, form=form)

    def piece(carry, heads):
        (p_peak_T, p_total_T, apart_T), (q_peak_T, q_total_T) = carry
        student_TC, teacher_TC = map(logits, (student, teacher), heads)
        p_TC, q_TC = teacher_TC, student_TC
        if direction == "reverse":
            p_TC, q_TC = q_TC, p_TC
        p_peak_T, p_scale_T, p_exp_TC = _raise(p_peak_T, p_TC)
        q_peak_T, q_scale_T, q_exp_TC = _raise(q_peak_T, q_TC)
        p_total_T = p_total_T * p_scale_T + p_exp_TC.sum(axis=-1)
        apart_T = apart_T * p_scale_T + (p_exp_TC * (p_TC - q_TC)).sum(axis=-1)
        q_total_T = q_total_T * q_scale_T + q_exp_TC.sum(axis=-1)
        return ((p_peak_T, p_total_T, apart_T), (q_peak_T, q_total_T)), None

    zeros_T = jnp.zeros(student.hidden.shape[0], jnp.float32)
    start = (zeros_T - jnp.inf, zeros_T, zeros_T), (zeros_T - jnp.inf, zeros_T)
    heads = _pieces(student.head, chunks), _pieces(teacher.head, chunks)
    (p, q), _ = lax.scan(jax.checkpoint(piece), start, heads)
    (p_peak_T, p_total_T, apart_T), (q_peak_T, q_total_T) = p, q
    log_ratio_T = q_peak_T - p_peak_T + jnp.log(q_total_T) - jnp.log(p_total_T)
    return apart_T / p_total_T + log_ratio_T


def divergence_of_best(
    student: Scores,
    teacher: Scores,
    *,
    count: int,
    chunks: int,
    temperature: float,
    form: str,
) -> jax.Array:
    """Returns KL(teacher ‖ student), [T], of a teacher that says only its best tokens.

    The probabilities of its `count` best logits are made to sum to 1; those of the
    student are of the whole vocabulary.
    """
    logits = partial(_logits, temperature=temperature, form=form)
    best_TK, ids_TK = best(
        teacher, count=count, chunks=chunks, temperature=temperature, form=form
    )
    log_p_TK = jax.nn.log_softmax(best_TK)

    def piece(carry, item):
        peak_T, total_T, found_TK = carry
        head, offset = item
        q_TC = logits(student, head)
        peak_T, scale_T, exp_TC = _raise(peak_T, q_TC)
        total_T = total_T * scale_T + exp_TC.sum(axis=-1)
        here_TK = jnp.take_along_axis(q_TC, ids_TK // chunks, axis=-1)
        found_TK = jnp.where(ids_TK % chunks == offset, here_TK, found_TK)
        return (peak_T, total_T, found_TK), None

    zeros_T = jnp.zeros(student.hidden.shape[0], jnp.float32)
    start = zeros_T - jnp.inf, zeros_T, jnp.zeros_like(best_TK)
    items = _pieces(student.head, chunks), jnp.arange(chunks)
    (peak_T, total_T, q_TK), _ = lax.scan(jax.checkpoint(piece), start, items)
    log_q_TK = q_TK - (peak_T + jnp.log(total_T))[:, None]
    return jnp.sum(jnp.exp(log_p_TK) * (log_p_TK - log_q_TK), axis=-1)


def best(
    scores: Scores, *, count: int, chunks: int, temperature: float, form: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the `count` best logits of each token and their ids, [T, K]."""

    def piece(carry, item):
        head, offset = item
        logits_TC = _logits(scores, head, temperature=temperature, form=form)
        most = min(count, logits_TC.shape[-1])
        values_TK, places_TK = lax.top_k(logits_TC, most)
        values_TK = jnp.concatenate([carry[0], values_TK], axis=-1)
        ids_TK = jnp.concatenate([carry[1], places_TK * chunks + offset], axis=-1)
        values_TK, kept_TK = lax.top_k(values_TK, count)
        return (values_TK, jnp.take_along_axis(ids_TK, kept_TK, axis=-1)), None

    shape = scores.hidden.shape[0], count
    start = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
    items = _pieces(scores.head, chunks), jnp.arange(chunks, dtype=jnp.int32)
    return lax.scan(piece, start, items)[0]


def _raise(peak_T, logits_TC) -> tuple[Any, Any, Any]:
    """Returns the new maximum, what sums so far shrink by, and exp of the logits."""
    new_T = jnp.maximum(peak_T, lax.stop_gradient(logits_TC.max(axis=-1)))
    return new_T, jnp.exp(peak_T - new_T), jnp.exp(logits_TC - new_T[:, None])


def _pieces(head_VD: jax.Array, chunks: int) -> jax.Array:
    """Returns [chunks, C, D]: a piece has every `chunks`-th row, as in the loss."""
    vocab, width = head_VD.shape
    return jnp.swapaxes(head_VD.reshape(vocab // chunks, chunks, width), 0, 1)


def _logits(scores: Scores, head_CD, *, temperature: float, form: str) -> jax.Array:
    """Returns float32 [T, C]."""
    raw_TC = kernels.matmul(scores.hidden, head_CD.T, form=form, out_dtype=jnp.float32)
    return softcap(raw_TC, scores.softcap) / temperature
