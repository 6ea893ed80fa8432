"""Products, norm, rotation, attention: the one place where the backend decides a form.

Form 'xla' is plain `dot_general`, which GPU and TPU compilers know best. Form 'cpu'
computes the same values in shapes that XLA's CPU compiler runs fast; its gain is in the
backward pass, where products contract the rows of both operands. Nothing outside this
file asks which backend it runs on, but for the loop over layers (`decoder.py`).

What makes a CPU form, measured with `benchmarks/train_throughput.py`:

- A product that contracts axis 0 of its left operand runs 3 to 8 times slower than one
  that contracts the last axis. The compiler folds a plain transpose back into the
  product, so `_turn` writes one that it cannot fold.
- Where a transpose is due, the smaller operand takes it: attention's key and value
  gradients are computed as [H, S] instead of turning the [L, S] probabilities.
- A pass over joined axes, [B, L, N, H] seen as [R, N·H], divides to find the place of
  each element and is not vectorised; a barrier keeps the join out of it.
- Results pass an `optimization_barrier`: a transpose that follows would otherwise be
  folded in, giving a product with bfloat16 operands that compiles and then fails at
  run time with UNIMPLEMENTED.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmx.core.cores import available_cores

Form = Literal["xla", "cpu"]
DTypeLike = jax.typing.DTypeLike


def select_form(kernels: str) -> Form:
    """Returns the form that the config value 'auto', 'cpu' or 'xla' stands for here."""
    if kernels == "auto":
        return "cpu" if jax.default_backend() == "cpu" else "xla"
    assert kernels in ("cpu", "xla"), kernels
    return "cpu" if kernels == "cpu" else "xla"


def micro_batches(rows: int, tokens: int, *, form: str) -> int:
    """Returns how many pieces to cut a batch of `tokens` into.

    A divisor of `rows`, those of one device; `tokens` are of all.

    On CPU about 1,024 tokens go to each core, so that activations stay in its cache;
    larger pieces wait for memory, smaller ones for the sums of gradients. Elsewhere
    a batch stays whole.
    """
    if form == "xla":
        return 1
    most = tokens // (1024 * available_cores())
    return next(n for n in range(max(1, min(most, rows)), 0, -1) if rows % n == 0)


def matmul(
    x: jax.Array, w: jax.Array, *, form: str, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Returns `x [..., I] @ w [I, O]` in `out_dtype`, by default the type of `x`.

    `w` may be of a wider type than `x`, such as float32 master weights: it is rounded
    to the type of `x` for the product, and its gradient keeps the wider type. All three
    products take operands of the type of `x` and accumulate in float32.
    """
    return _matmul(form, jnp.dtype(out_dtype or x.dtype), x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(form, out_dtype, x, w):
    return _matmul_forward(form, out_dtype, x, w)[0]


def _matmul_forward(form, out_dtype, x, w):
    rounded = w.astype(x.dtype)
    y = product(x, rounded, ((x.ndim - 1,), (0,)), out_dtype, form)
    # The empty slice remembers the type of `w` without keeping it alive.
    return y, (x, rounded, w[:0])


def _matmul_backward(form, out_dtype, saved, dy):
    x, w, like_w = saved
    dy = dy.astype(x.dtype)
    dx = product(dy, w, ((x.ndim - 1,), (1,)), x.dtype, form)
    return dx, weight_gradient(x, dy, like_w.dtype, form)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def weight_gradient(
    x: jax.Array, dy: jax.Array, dtype: DTypeLike, form: str
) -> jax.Array:
    """Returns the sum over rows of x [..., I]ᵀ · dy [..., O], [I, O] in `dtype`.

    On CPU the smaller of the two is turned.
    """
    x_RI, dy_RO = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if form == "xla":
        return product(x_RI, dy_RO, ((0,), (0,)), dtype, form)
    if x.shape[-1] <= dy.shape[-1]:
        return product(_turn(x), dy_RO, ((1,), (0,)), dtype, form)
    return product(_turn(dy), x_RI, ((1,), (0,)), dtype, form).T


def product(a, b, contract, dtype: DTypeLike, form: str) -> jax.Array:
    """Returns the product of `a` and `b` over the axes `contract`, without batches."""
    y = lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)
    y = y.astype(dtype)
    return lax.optimization_barrier(y) if form == "cpu" else y


def _turn(x: jax.Array) -> jax.Array:
    """Returns x [..., C] as [C, R], for even R not to be folded into a product.

    The axes are turned as they came: joined first, each element would cost a division
    to find its place, six times the time.
    """
    C = x.shape[-1]
    x = x.reshape(*(size for size in x.shape[:-1] if size > 1), C)
    if x.ndim <= 2:
        if x.size // C % 2:
            return x.reshape(-1, C).T
        x = x.reshape(2, -1, C)
    x = lax.optimization_barrier(x)
    return x.transpose(x.ndim - 1, *range(x.ndim - 1)).reshape(C, -1)


def rotate(
    x_BLNH: jax.Array, cos: jax.Array, sin: jax.Array, *, form: str
) -> jax.Array:
    """Returns x · cos + (−x₂, x₁) · sin, x₁ and x₂ the halves of the last axis.

    `cos` and `sin` broadcast to x and are the same in both halves, so that the gradient
    is the rotation by the opposite angles.
    """
    return _rotate(form, x_BLNH, cos, sin)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotate(form, x, cos, sin):
    return _rotate_forward(form, x, cos, sin)[0]


def _rotate_forward(form, x, cos, sin):
    y = x * cos + _quarter_turn(x, form) * sin
    return y.astype(x.dtype), (cos, sin)


def _rotate_backward(form, saved, dy):
    cos, sin = saved
    dx, _ = _rotate_forward(form, dy, cos, -sin)
    # Heads are joined next; done in the same pass, that costs a division an element.
    return lax.optimization_barrier(dx) if form == "cpu" else dx, None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def _quarter_turn(x: jax.Array, form: str) -> jax.Array:
    """Returns (−x₂, x₁) of the two halves x₁, x₂ of the last axis, as float32.

    On CPU it is a product with a signed permutation, which is exact: reading across
    halves element by element takes several times as long.
    """
    half = x.shape[-1] // 2
    if form == "xla":
        x = x.astype(jnp.float32)
        return jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    turn = jnp.asarray(np.kron([[0, 1], [-1, 0]], np.eye(half)), x.dtype)
    return product(x, turn, ((x.ndim - 1,), (0,)), jnp.float32, form)


def rms_norm(
    x: jax.Array, scale: jax.Array, *, epsilon: float, dtype: DTypeLike
) -> jax.Array:
    """Returns x / sqrt(mean(x²) + ε) · scale over the last axis, in `dtype`.

    Arithmetic is float32 (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4). The backward
    pass keeps `x` as it came and one number a row, not the float32 normalised rows.
    """
    return _rms_norm(epsilon, jnp.dtype(dtype), x, scale)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rms_norm(epsilon, dtype, x, scale):
    return _rms_norm_forward(epsilon, dtype, x, scale)[0]


def _rms_norm_forward(epsilon, dtype, x, scale):
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
    inverse = lax.rsqrt(mean + epsilon)
    return (wide * inverse * scale).astype(dtype), (x, scale, inverse)


def _rms_norm_backward(epsilon, dtype, saved, dy):
    x, scale, inverse = saved
    unit, dy = x.astype(jnp.float32) * inverse, dy.astype(jnp.float32)
    dunit = dy * scale
    mean = jnp.mean(dunit * unit, axis=-1, keepdims=True)
    dscale = jnp.sum(dy * unit, axis=tuple(range(x.ndim - 1)))
    return ((dunit - unit * mean) * inverse).astype(x.dtype), dscale.astype(scale.dtype)


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


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
    causal: bool = True,
    prefix_BS: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    alibi_slopes_N: jax.Array | None = None,
    softmax_dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns softmax attention, [B, L, N, H], in the type of `q_BLNH`.

    Query head n reads key head n // (N / K). A query at index i sees keys at indices in
    (i - window, i] of its own segment, and unless `causal` up to i + window; it sees
    keys of its segment that are `prefix_BS` wherever they are; segment 0 is padding and
    sees nothing. A query that sees no key gives zeros. Scores are scaled
    by 1/sqrt(H), then capped to softcap·tanh(s/softcap), then biased by
    -slope·|key index - query index|. `sinks_N` are scores of a key that everyone sees
    and that has no value (gpt-oss, after Xiao et al. 2023, arXiv:2309.17453). Values
    may be of another size than H; the result then has theirs.
    """
    distance_BLS = key_index_BS[:, None, :] - query_index_BL[:, :, None]
    mask_BLS = distance_BLS <= 0 if causal else jnp.ones_like(distance_BLS, bool)
    if prefix_BS is not None:
        mask_BLS |= prefix_BS[:, None, :]
    if window is not None:
        mask_BLS &= jnp.abs(distance_BLS) < window
    if query_segments_BL is not None and key_segments_BS is not None:
        mask_BLS &= query_segments_BL[:, :, None] == key_segments_BS[:, None, :]
        mask_BLS &= query_segments_BL[:, :, None] != 0
    plain = softcap is None and alibi_slopes_N is None and sinks_N is None
    plain &= q_BLNH.shape[1] > 1
    if form == "cpu" and plain and jnp.dtype(softmax_dtype) == jnp.float32:
        return _attention_cpu(q_BLNH, k_BSKH, v_BSKH, mask_BLS)

    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    s_BKGLS = _scores(q_BLNH, k_BSKH, form).astype(softmax_dtype) * (1 / math.sqrt(H))
    if softcap is not None:
        s_BKGLS = softcap * jnp.tanh(s_BKGLS / softcap)
    if alibi_slopes_N is not None:
        slopes_KG11 = alibi_slopes_N.reshape(K, N // K, 1, 1).astype(softmax_dtype)
        s_BKGLS -= slopes_KG11 * jnp.abs(distance_BLS)[:, None, None]
    sinks = None
    if sinks_N is not None:
        sinks = sinks_N.astype(softmax_dtype).reshape(K, N // K, 1, 1)
    p_BKGLS = _softmax(s_BKGLS, mask_BLS[:, None, None], sinks).astype(v_BSKH.dtype)
    if form == "cpu":
        p = p_BKGLS.reshape(B * K, -1, S)
        return _heads(_batched("zms,zsh->zmh", p, _rows(v_BSKH, K), q_BLNH.dtype), B, L)
    o_BLKGH = jnp.einsum(
        "BKGLS,BSKH->BLKGH", p_BKGLS, v_BSKH, preferred_element_type=jnp.float32
    )
    return o_BLKGH.reshape(B, L, N, -1).astype(q_BLNH.dtype)


def _scores(q_BLNH, k_BSKH, form: str) -> jax.Array:
    """Returns the products of queries and keys, float32 [B, K, G, L, S]."""
    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    if form == "cpu":
        # Of other layouts some have no bfloat16 product, which shows at run time.
        q, k = _rows(q_BLNH, K), _rows(k_BSKH, K)
        if L == 1:  # the few queries are turned, not the keys: twice as fast
            s = _batched("zsh,zmh->zsm", k, q, jnp.float32).transpose(0, 2, 1)
        else:
            s = _batched("zmh,zsh->zms", q, k, jnp.float32)
        return s.reshape(B, K, N // K, L, S)
    q_BLKGH = q_BLNH.reshape(B, L, K, N // K, H)
    return jnp.einsum(
        "BLKGH,BSKH->BKGLS", q_BLKGH, k_BSKH, preferred_element_type=jnp.float32
    )


def _softmax(scores: jax.Array, mask: jax.Array, sinks=None) -> jax.Array:
    """Returns the softmax over the last axis where `mask` holds; empty rows give 0.

    `sinks` are scores of one more entry, which is left out of the result.
    """
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    peak = scores.max(axis=-1, keepdims=True)
    peak = lax.stop_gradient(peak if sinks is None else jnp.maximum(peak, sinks))
    p = jnp.exp(scores - peak)
    total = p.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += jnp.exp(sinks - peak)
    return p / jnp.where(mask.any(axis=-1, keepdims=True), total, jnp.inf)


@jax.custom_vjp
def _attention_cpu(q_BLNH, k_BSKH, v_BSKH, mask_BLS):
    """Attention on [B·K, G·L, H] and [B·K, S, H]: one batch of plain products."""
    return _attention_cpu_forward(q_BLNH, k_BSKH, v_BSKH, mask_BLS)[0]


def _attention_cpu_forward(q_BLNH, k_BSKH, v_BSKH, mask_BLS):
    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    q, k, v = _rows(q_BLNH, K), _rows(k_BSKH, K), _rows(v_BSKH, K)
    scores = _batched("zmh,zsh->zms", q, k, jnp.float32, 1 / math.sqrt(H))
    p = _softmax(scores.reshape(B, K, N // K, L, S), mask_BLS[:, None, None])
    p = p.astype(q.dtype).reshape(B * K, -1, S)
    out = _batched("zms,zsh->zmh", p, v, q.dtype)
    return _heads(out, B, L), (q_BLNH, k_BSKH, v_BSKH, p, out)


def _attention_cpu_backward(saved, dout_BLNH):
    q_BLNH, k_BSKH, v_BSKH, p, out = saved
    B, L, _, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    k, v, dout = _rows(k_BSKH, K), _rows(v_BSKH, K), _rows(dout_BLNH, K)
    dp = _batched("zmh,zsh->zms", dout, v, jnp.float32)
    mean = jnp.sum(dout.astype(jnp.float32) * out, axis=-1, keepdims=True)
    # The scale is due on [L, S] scores but cheaper on the products of them.
    ds, scale = (p * (dp - mean)).astype(p.dtype), 1 / math.sqrt(H)
    dq = _batched("zms,zsh->zmh", ds, k, q_BLNH.dtype, scale)
    dk = _batched("zhm,zms->zhs", _columns(q_BLNH, K), ds, k_BSKH.dtype, scale)
    dv = _batched("zhm,zms->zhs", _columns(dout_BLNH, K), p, v_BSKH.dtype)

    def unturn(x):
        return x.reshape(B, K, -1, S).transpose(0, 3, 1, 2)

    return _heads(dq, B, L), unturn(dk), unturn(dv), None


_attention_cpu.defvjp(_attention_cpu_forward, _attention_cpu_backward)


def einsum(subscripts: str, x: jax.Array, w: jax.Array, *, form: str) -> jax.Array:
    """Returns the product of `x` and `w`, which has a batch axis, in the type of `x`.

    It accumulates in float32. On CPU operands are float32: some bfloat16 products with
    batches compile and then fail at run time.
    """
    dtype = jnp.float32 if form == "cpu" else x.dtype
    return jnp.einsum(
        subscripts,
        x.astype(dtype),
        w.astype(dtype),
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)


def _batched(subscripts: str, a, b, dtype: DTypeLike, scale: float = 1.0) -> jax.Array:
    """Returns `scale` times a batch of products, in `dtype`."""
    y = jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    return (lax.optimization_barrier(y) * scale).astype(dtype)


def _rows(x_BLNH: jax.Array, K: int) -> jax.Array:
    """Returns [B·K, G·L, H]: the query heads of a key head follow each other."""
    B, L, N, H = x_BLNH.shape
    return x_BLNH.transpose(0, 2, 1, 3).reshape(B * K, N // K * L, H)


def _columns(x_BLNH: jax.Array, K: int) -> jax.Array:
    """Returns [B·K, H, G·L], the transpose of `_rows`."""
    B, L, N, H = x_BLNH.shape
    x_BKHGL = x_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 4, 3, 1)
    return x_BKHGL.reshape(B * K, H, N // K * L)


def _heads(x: jax.Array, B: int, L: int) -> jax.Array:
    """Returns [B, L, N, H] of [B·K, G·L, H]: undoes `_rows`."""
    return x.reshape(B, -1, L, x.shape[-1]).transpose(0, 2, 1, 3)
