"""Products and attention: the one place where the backend decides the form.

Form 'xla' is plain `dot_general` and einsum, which GPU and TPU compilers know best.
Form 'cpu' computes the same values in shapes that XLA's CPU compiler runs fast. Nothing
outside this file asks which backend it runs on.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

Form = Literal["xla", "cpu"]


def select_form(kernels: str) -> Form:
    """Returns the form that the config value 'auto', 'cpu' or 'xla' stands for here."""
    if kernels == "auto":
        return "cpu" if jax.default_backend() == "cpu" else "xla"
    assert kernels in ("cpu", "xla"), kernels
    return kernels  # type: ignore[return-value]


def matmul(
    x: jax.Array, w: jax.Array, *, form: str, out_dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """Returns `x [..., I] @ w [I, O]`, accumulated in float32.

    The result has `out_dtype`, by default the type of `x`.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    y = jax.lax.dot_general(x, w, contract, preferred_element_type=jnp.float32)
    return y.astype(out_dtype)


def attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    form: str,
    query_index_BL: jax.Array,
    key_index_BS: jax.Array,
    query_segments_BL: jax.Array | None = None,
    key_segments_BS: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes_N: jax.Array | None = None,
    softmax_dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns causal softmax attention, [B, L, N, H], in the type of `q_BLNH`.

    Query head n reads key head n // (N / K). A query at index i sees keys at indices in
    (i - window, i] of its own segment; segment 0 is padding and sees nothing. A query
    that sees no key gives zeros. Scores are scaled by 1/sqrt(H), then capped to
    softcap·tanh(s/softcap), then biased by slope·(key index - query index).
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    q_BLKGH = q_BLNH.reshape(B, L, K, N // K, H)
    s_BKGLS = jnp.einsum(
        "BLKGH,BSKH->BKGLS", q_BLKGH, k_BSKH, preferred_element_type=softmax_dtype
    )
    s_BKGLS = s_BKGLS * (1 / math.sqrt(H))
    if softcap is not None:
        s_BKGLS = softcap * jnp.tanh(s_BKGLS / softcap)
    distance_BLS = key_index_BS[:, None, :] - query_index_BL[:, :, None]
    if alibi_slopes_N is not None:
        slopes_KG = alibi_slopes_N.reshape(K, N // K).astype(softmax_dtype)
        s_BKGLS += slopes_KG[:, :, None, None] * distance_BLS[:, None, None]
    mask_BLS = distance_BLS <= 0
    if window is not None:
        mask_BLS &= distance_BLS > -window
    if query_segments_BL is not None and key_segments_BS is not None:
        mask_BLS &= query_segments_BL[:, :, None] == key_segments_BS[:, None, :]
        mask_BLS &= query_segments_BL[:, :, None] != 0
    mask_B11LS = mask_BLS[:, None, None]
    s_BKGLS = jnp.where(mask_B11LS, s_BKGLS, jnp.finfo(s_BKGLS.dtype).min)
    s_BKGLS -= jax.lax.stop_gradient(s_BKGLS.max(axis=-1, keepdims=True))
    p_BKGLS = jnp.where(mask_B11LS, jnp.exp(s_BKGLS), 0)
    total = p_BKGLS.sum(axis=-1, keepdims=True)
    p_BKGLS = p_BKGLS / jnp.where(total == 0, 1, total)
    o_BLKGH = jnp.einsum(
        "BKGLS,BSKH->BLKGH",
        p_BKGLS.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=jnp.float32,
    )
    return o_BLKGH.reshape(B, L, N, H).astype(q_BLNH.dtype)
