"""Products and attention against plain float64 NumPy, forward and backward.

The forms for CPU are executed here in every dtype and odd size: some compile and then
fail at run time.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.models import kernels

FORMS = ("xla", "cpu")
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def relative_error(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return np.abs(got - expected).max() / max(1e-6, np.abs(expected).max())


def normal(seed, shape, dtype="float32"):
    """Returns values that are exact in `dtype`."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --- products ---------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (3,), (7, 1), (3, 5), (4, 8)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 3), (16, 32)])
def test_a_product_and_its_gradients_equal_numpy(form, dtype, rows, inputs, outputs):
    x, w = normal(0, (*rows, inputs), dtype), normal(1, (inputs, outputs), dtype)
    dy = normal(2, (*rows, outputs), dtype)

    @jax.jit
    def run(x, w, dy):
        y, back = jax.vjp(partial(kernels.matmul, form=form), x, w)
        return y, *back(dy)

    y, dx, dw = run(x, w, dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (x.dtype, x.dtype, w.dtype)
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    flat_x, flat_dy = x.reshape(-1, inputs), dy.reshape(-1, outputs)
    for got, expected in ((y, x @ w), (dx, dy @ w.T), (dw, flat_x.T @ flat_dy)):
        assert relative_error(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_master_weights_get_gradients_that_were_never_rounded(form):
    x, w = normal(0, (64, 16), "bfloat16"), normal(1, (16, 8))

    def loss(w):
        return kernels.matmul(x, w, form=form, out_dtype="float32").sum()

    dw = jax.jit(jax.grad(loss))(w)
    assert dw.dtype == jnp.float32
    expected = np.asarray(x, np.float64).T @ np.ones((64, 8))
    assert relative_error(dw, expected) < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 6, 7])
def test_products_of_transposes_run(form, dtype, rows):
    """A transpose around a product is folded into forms that may not exist."""
    x, w = normal(0, (8, rows), dtype), normal(1, (4, 8), dtype)

    @jax.jit
    def run(x, w):
        def tall(x, w):
            return kernels.matmul(x.T, w.T, form=form).T

        y, back = jax.vjp(tall, x, w)
        return y, *(g.T for g in back(y))

    y, dx, dw = run(x, w)
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    for got, expected in ((y, w @ x), (dx, (w @ x).T @ w), (dw, x @ (w @ x).T)):
        assert relative_error(got, expected) < 2 * TOLERANCE[dtype]


# --- norm -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 4, 8), (2, 3, 2, 6)])
def test_rms_norm_and_its_gradients_equal_numpy(dtype, shape):
    x, scale, dy = (
        normal(0, shape, dtype),
        normal(1, shape[-1:]),
        normal(2, shape, dtype),
    )

    @jax.jit
    def run(x, scale, dy):
        norm = partial(kernels.rms_norm, epsilon=0.1, dtype=dtype)
        y, back = jax.vjp(norm, x, scale)
        return y, *back(dy)

    y, dx, dscale = run(x, scale, dy)
    assert (y.dtype, dx.dtype, dscale.dtype) == (x.dtype, x.dtype, scale.dtype)
    x, scale, dy = (np.asarray(a, np.float64) for a in (x, scale, dy))
    root = np.sqrt((x * x).mean(-1, keepdims=True) + 0.1)
    inner = (dy * scale * x).mean(-1, keepdims=True)
    for got, expected in (
        (y, x / root * scale),
        (dx, dy * scale / root - x * inner / root**3),
        (dscale, (dy * x / root).reshape(-1, shape[-1]).sum(0)),
    ):
        assert relative_error(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (9, 3), (6, 1)])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_step_of_decoding_runs_in_bfloat16_from_a_cache(rows, heads, softcap):
    """Keys come turned from a cache [B, K, S, H]; not every such product exists."""
    (N, K), S, H = heads, 32, 16
    q = normal(0, (rows, 1, N, H), "bfloat16")
    cache = normal(1, (rows, K, S, H), "bfloat16")

    @jax.jit
    def run(q, cache):
        key = cache.transpose(0, 2, 1, 3)
        return kernels.attention(
            q,
            key,
            key,
            form="cpu",
            query_index_BL=jnp.full((rows, 1), S - 1),
            key_index_BS=jnp.broadcast_to(jnp.arange(S), (rows, S)),
            softcap=softcap,
        )

    got = run(q, cache)
    q, cache = np.asarray(q, np.float64), np.asarray(cache, np.float64)
    keys = np.repeat(cache, N // K, axis=1)
    scores = np.einsum("bnh,bnsh->bns", q[:, 0], keys) / np.sqrt(H)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bns,bnsh->bnh", p / p.sum(-1, keepdims=True), keys)
    assert relative_error(got[:, 0], expected) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rotation_and_its_gradient_equal_numpy(form, dtype):
    x, dy = normal(0, (2, 5, 3, 8), dtype), normal(1, (2, 5, 3, 8), dtype)
    angles = np.tile(np.random.default_rng(2).normal(size=(2, 5, 1, 4)), 2)
    cos, sin = (jnp.asarray(f(angles), "float32") for f in (np.cos, np.sin))

    @jax.jit
    def run(x, dy):
        y, back = jax.vjp(lambda x: kernels.rotate(x, cos, sin, form=form), x)
        return y, back(dy)[0]

    def turned(x, angles):
        first, second = np.split(np.asarray(x, np.float64), 2, axis=-1)
        turn = np.exp(1j * angles[..., :4])
        pairs = (first + 1j * second) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    y, dx = run(x, dy)
    assert y.dtype == dx.dtype == x.dtype
    assert relative_error(y, turned(x, angles)) < TOLERANCE[dtype]
    assert relative_error(dx, turned(dy, -angles)) < TOLERANCE[dtype]


def test_micro_batches_divide_the_rows_and_fill_the_cores(monkeypatch):
    monkeypatch.setattr(kernels, "available_cores", lambda: 2)
    pieces = partial(kernels.micro_batches, form="cpu")
    assert pieces(16, 16 * 256) == 2
    assert pieces(16, 16 * 2048) == 16
    assert pieces(15, 15 * 512) == 3
    assert pieces(7, 7 * 1024) == 1
    assert pieces(4, 4) == 1
    assert kernels.micro_batches(16, 16 * 2048, form="xla") == 1


# --- attention --------------------------------------------------------------------


def reference(q, k, v, dout, *, mask, bias, softcap):
    """Returns out, dq, dk, dv in float64, head by head and query by query."""
    q, k, v, dout = (np.asarray(a, np.float64) for a in (q, k, v, dout))
    B, L, N, H = q.shape
    groups = N // k.shape[2]
    out, dq, dk, dv = (np.zeros_like(a) for a in (q, q, k, v))
    for b, i, n in itertools.product(range(B), range(L), range(N)):
        seen = np.flatnonzero(mask[b, i])
        if not len(seen):
            continue
        kn, vn = k[b, seen, n // groups], v[b, seen, n // groups]
        s = kn @ q[b, i, n] / np.sqrt(H)
        slope = np.ones_like(s)
        if softcap is not None:
            slope = 1 - np.tanh(s / softcap) ** 2
            s = softcap * np.tanh(s / softcap)
        s = s + bias[b, i, seen, n]
        p = np.exp(s - s.max())
        p /= p.sum()
        out[b, i, n] = p @ vn
        dp = vn @ dout[b, i, n]
        ds = p * (dp - p @ dp) * slope / np.sqrt(H)
        dq[b, i, n] = ds @ kn
        np.add.at(dk, (b, seen, n // groups), ds[:, None] * q[b, i, n])
        np.add.at(dv, (b, seen, n // groups), p[:, None] * dout[b, i, n])
    return out, dq, dk, dv


def check_attention(
    *, form, dtype, shape, segments=False, offset=0, prefix=False, **options
):
    B, L, S, N, K, H = shape
    q, dout = normal(0, (B, L, N, H), dtype), normal(3, (B, L, N, H), dtype)
    k, v = normal(1, (B, S, K, H), dtype), normal(2, (B, S, K, H), dtype)
    query_index = np.broadcast_to(np.arange(L) + offset, (B, L))
    key_index = np.broadcast_to(np.arange(S), (B, S))
    distance = key_index[:, None] - query_index[:, :, None]
    mask = (distance <= 0) | (not options.get("causal", True))
    if prefix:
        given = np.random.default_rng(5).random((B, S)) < 0.4
        mask |= given[:, None]
        options["prefix_BS"] = given
    if options.get("window"):
        mask &= np.abs(distance) < options["window"]
    bias = np.zeros((B, L, S, N))
    if options.get("alibi_slopes_N") is not None:
        bias -= np.abs(distance)[..., None] * np.asarray(options["alibi_slopes_N"])
    if segments:
        ids = np.sort(np.random.default_rng(4).integers(1, 4, (B, L)), axis=1)
        ids[:, L - L // 3 :] = 0  # a tail of padding
        mask &= (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] != 0)
        options |= {"query_segments_BL": ids, "key_segments_BS": ids}

    @jax.jit
    def run(q, k, v, dout):
        attend = partial(
            kernels.attention,
            form=form,
            query_index_BL=query_index,
            key_index_BS=key_index,
            **options,
        )
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(dout)

    expected = reference(
        q, k, v, dout, mask=mask, bias=bias, softcap=options.get("softcap")
    )
    got = run(q, k, v, dout)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == q.dtype
        assert relative_error(g, e) < TOLERANCE[dtype]


SHAPES = {  # B, L, S, N, K, H
    "multi-head": (2, 8, 8, 4, 4, 8),
    "grouped": (2, 6, 6, 4, 2, 4),
    "multi-query": (1, 9, 9, 3, 1, 5),
    "one token": (3, 1, 1, 2, 2, 4),
}
OPTIONS = {
    "packed": {"segments": True},
    "window": {"window": 3},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes_N": True},
}
CASES = [
    (dtype, names)
    for count in range(len(OPTIONS) + 1)
    for names in itertools.combinations(OPTIONS, count)
    for dtype in ("float32", "bfloat16")
    if dtype == "float32" or count < 2
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("dtype", "names"), CASES)
def test_attention_and_its_gradients_equal_numpy(form, dtype, shape, names):
    options = {k: v for name in names for k, v in OPTIONS[name].items()}
    if "alibi_slopes_N" in options:
        options["alibi_slopes_N"] = np.float32(2.0) ** -np.arange(1, shape[3] + 1)
    check_attention(form=form, dtype=dtype, shape=shape, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "names"), [case for case in CASES if len(case[1]) in (0, 2, 4)]
)
def test_bidirectional_attention_and_its_gradients_equal_numpy(form, dtype, names):
    options = {k: v for name in names for k, v in OPTIONS[name].items()}
    shape = SHAPES["grouped"]
    if "alibi_slopes_N" in options:
        options["alibi_slopes_N"] = np.float32(2.0) ** -np.arange(1, shape[3] + 1)
    check_attention(form=form, dtype=dtype, shape=shape, causal=False, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_keys_of_a_prefix_are_seen_by_all(form, segments, softcap):
    options = {"shape": SHAPES["grouped"], "segments": segments, "softcap": softcap}
    check_attention(form=form, dtype="float32", prefix=True, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("length", "offset"), [(1, 0), (1, 5), (3, 4)])
def test_queries_at_an_offset_see_a_longer_cache(form, dtype, length, offset):
    check_attention(
        form=form, dtype=dtype, shape=(2, length, 9, 4, 2, 4), offset=offset
    )


def two_layers(form, q, k, v, w):
    """Attention and a product twice, as training runs them: scan and checkpoint."""
    index = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])

    @jax.checkpoint
    def layer(q, w):
        out = kernels.attention(
            q, k, v, form=form, query_index_BL=index, key_index_BS=index
        )
        flat = out.reshape(*out.shape[:2], -1)
        return kernels.matmul(flat, w, form=form).reshape(q.shape), None

    return jnp.sum(jnp.square(jax.lax.scan(layer, q, w)[0].astype(jnp.float32)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_forms_agree_under_scan_and_checkpoint(dtype):
    q, k = normal(0, (2, 6, 4, 4), dtype), normal(1, (2, 6, 2, 4), dtype)
    v, w = normal(2, (2, 6, 2, 4), dtype), normal(3, (2, 16, 16))
    plain, fast = (
        jax.jit(jax.grad(partial(two_layers, form), argnums=(0, 1, 2, 3)))(q, k, v, w)
        for form in FORMS
    )
    for a, b in zip(plain, fast, strict=True):
        assert relative_error(b, a) < TOLERANCE[dtype]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mesh_shape", [(8, 1), (4, 2), (2, 4)])
def test_eight_devices_give_the_gradients_of_one(form, mesh_shape):
    q, k = normal(0, (8, 6, 4, 4)), normal(1, (8, 6, 4, 4))
    v, w = normal(2, (8, 6, 4, 4)), normal(3, (2, 16, 16))
    gradient = jax.grad(partial(two_layers, form), argnums=(0, 1, 2, 3))
    expected = jax.jit(gradient)(q, k, v, w)
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(mesh_shape, ("data", "tensor"), axis_types=axes)
    rows = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    matrix = NamedSharding(mesh, PartitionSpec(None, "data", "tensor"))
    placed = [jax.device_put(a, rows) for a in (q, k, v)]
    got = jax.jit(gradient)(*placed, jax.device_put(w, matrix))
    for a, b in zip(expected, got, strict=True):
        assert relative_error(b, a) < TOLERANCE["float32"]


@pytest.mark.skipif(jax.device_count() > 1, reason="is started by this very test")
def test_gradients_on_eight_devices_equal_those_on_one():
    """Fake devices must exist before JAX starts: pytest runs on this file again."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "eight_devices_give", __file__],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout, done.stdout


def test_the_form_follows_the_platform_unless_it_is_named():
    assert kernels.select_form("auto") == (
        "cpu" if jax.default_backend() == "cpu" else "xla"
    )
    assert kernels.select_form("xla") == "xla"
    assert kernels.select_form("cpu") == "cpu"
