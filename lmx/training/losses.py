"""Cross-entropy of hidden states against a head, in pieces of a large vocabulary."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lmx.core.errors import UserError
from lmx.models.kernels import weight_gradient

CHUNK = 8192  # vocabulary entries per piece when the config names no number of pieces


def cross_entropy(
    hidden_TD: jnp.ndarray,
    head_VD: jnp.ndarray,
    targets_T: jnp.ndarray,
    *,
    chunks: int | None = None,
    softcap: float | None = None,
    form: str = "xla",
) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Returns −log p(target) and log Z of each token, both float32 [T].

    Logits are `hidden · headᵀ` with float32 accumulation, capped to
    softcap·tanh(z/softcap). They are computed for `chunks` pieces of the vocabulary in
    turn, in the backward pass again, so that the memory is T·V/chunks. A piece takes
    every `chunks`-th entry: each device that holds a slice of the vocabulary then has
    part of every piece. `form` is that of products (`models/kernels.py`).

    Raises:
      UserError: `chunks` is below 1 or does not divide V.
    """
    chunks = vocabulary_pieces(head_VD.shape[0], chunks)
    return _cross_entropy(chunks, softcap, form, hidden_TD, head_VD, targets_T)


def vocabulary_pieces(vocab: int, chunks: int | None) -> int:
    """Returns the number of equal pieces of the vocabulary.

    `chunks` if it divides `vocab`; for None as few as are at most 8,192 large, or one
    where no such number divides it (a prime vocabulary).

    Raises:
      UserError: `chunks` is below 1 or does not divide `vocab`.
    """
    if chunks is None:
        chunks = next(
            n for n in range(math.ceil(vocab / CHUNK), vocab + 1) if vocab % n == 0
        )
        chunks = chunks if vocab / chunks >= CHUNK / 16 else 1
    if chunks < 1 or vocab % chunks:
        near = min(
            (n for n in range(1, vocab + 1) if vocab % n == 0),
            key=lambda n: abs(n - chunks),
        )
        raise UserError(
            f"objective.vocab_chunks={chunks} does not divide the vocabulary of "
            f"{vocab}; nearest that does: {near}"
        )
    return chunks


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(chunks, softcap, form, hidden_TD, head_VD, targets_T):
    return _forward(chunks, softcap, form, hidden_TD, head_VD, targets_T)[0]


def _forward(chunks, softcap, form, hidden_TD, head_VD, targets_T):
    """Runs log-sum-exp over the pieces, keeping a running maximum (Milakov 2018)."""

    def piece(carry, item):
        peak_T, total_T, target_T = carry
        logits_TC, _, hit_TC = _piece_logits(
            hidden_TD, item, targets_T, chunks=chunks, softcap=softcap
        )
        new_peak_T = jnp.maximum(peak_T, lax.stop_gradient(logits_TC.max(axis=-1)))
        exp_TC = jnp.exp(logits_TC - new_peak_T[:, None])
        total_T = total_T * jnp.exp(peak_T - new_peak_T) + exp_TC.sum(axis=-1)
        target_T = target_T + jnp.where(hit_TC, logits_TC, 0).sum(axis=-1)
        return (new_peak_T, total_T, target_T), None

    zeros = jnp.zeros(targets_T.shape, jnp.float32)
    start = (zeros - jnp.inf, zeros, zeros)
    (peak_T, total_T, target_T), _ = _over_pieces(piece, start, head_VD, chunks)
    log_z_T = peak_T + jnp.log(total_T)
    # Not log Z − target, which loses the small loss between two large logits.
    nll_T = (peak_T - target_T) + jnp.log(total_T)
    return (nll_T, log_z_T), (hidden_TD, head_VD, targets_T, log_z_T)


def _backward(chunks, softcap, form, saved, cotangents):
    """D nll = softmax − onehot and d log Z = softmax, piece by piece."""
    hidden_TD, head_VD, targets_T, log_z_T = saved
    nll_T, z_T = cotangents

    def piece(d_hidden_TD, item):
        logits_TC, slope_TC, hit_TC = _piece_logits(
            hidden_TD, item, targets_T, chunks=chunks, softcap=softcap
        )
        softmax_TC = jnp.exp(logits_TC - log_z_T[:, None])
        d_TC = softmax_TC * (nll_T + z_T)[:, None] - jnp.where(
            hit_TC, nll_T[:, None], 0
        )
        d_TC = (d_TC * slope_TC).astype(hidden_TD.dtype)
        head_CD, _ = item
        d_head_CD = weight_gradient(d_TC, hidden_TD, jnp.float32, form)
        d_hidden_TD = d_hidden_TD + _product(d_TC, head_CD, ((1,), (0,)))
        return d_hidden_TD, d_head_CD

    start = jnp.zeros(hidden_TD.shape, jnp.float32)
    d_hidden_TD, d_head = _over_pieces(piece, start, head_VD, chunks)
    d_head_VD = jnp.swapaxes(d_head, 0, 1).reshape(head_VD.shape)
    return d_hidden_TD.astype(hidden_TD.dtype), d_head_VD.astype(head_VD.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _over_pieces(piece, start, head_VD, chunks: int):
    """Scans `piece` over (every chunks-th row of the head, its offset)."""
    vocab, width = head_VD.shape
    pieces = jnp.swapaxes(head_VD.reshape(vocab // chunks, chunks, width), 0, 1)
    offsets = jnp.arange(chunks, dtype=jnp.int32)
    if chunks == 1:  # no loop for the compiler to look into
        carry, out = piece(start, (pieces[0], offsets[0]))
        return carry, None if out is None else out[None]
    return lax.scan(piece, start, (pieces, offsets))


def _piece_logits(hidden_TD, item, targets_T, *, chunks, softcap):
    """Returns capped logits [T, C], d capped / d raw, and where the target is."""
    head_CD, offset = item
    logits_TC = _product(hidden_TD, head_CD, ((1,), (1,)))
    slope = jnp.float32(1.0)
    if softcap is not None:
        tanh_TC = jnp.tanh(logits_TC / softcap)
        logits_TC, slope = softcap * tanh_TC, 1 - tanh_TC * tanh_TC
    entry_C = jnp.arange(head_CD.shape[0], dtype=jnp.int32) * chunks + offset
    return logits_TC, slope, entry_C[None] == targets_T[:, None]


def _product(a, b, contract):
    """Returns the float32 product of two matrices over the axes `contract`."""
    return lax.dot_general(
        a, b, (contract, ((), ())), preferred_element_type=jnp.float32
    )
