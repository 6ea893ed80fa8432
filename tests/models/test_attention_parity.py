"""The decoder against a plain float64 NumPy one: logits, and gradients of a loss.

The reference, in this file, was written from the papers and shares nothing with the
model but the names of the parameters. Its gradients are central differences.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names
from lmx.models.decoder import Decoder, abstract_params, head_logits
from lmx.models.sizes import resolve

VOCAB, LENGTH = 29, 10
ERF = np.vectorize(math.erf)
GPT2 = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"}
STYLES = {
    "gpt2": GPT2,
    "llama": {"num_kv_heads": 2, "head": "untied", "rope_base": 100.0},
    "post_norm": {**GPT2, "norm_position": "post", "mlp": "gelu_exact"},
    "qk_norm": {"qk_norm": "rmsnorm", "num_kv_heads": 2, "mlp": "gelu_gated"},
    "qk_layernorm": {**GPT2, "qk_norm": "layernorm", "positions": "rope"},
    "softcaps": {"attention_softcap": 0.7, "logit_softcap": 1.5},
    "alibi": {"positions": "alibi", "num_kv_heads": 1, "num_heads": 6, "head_dim": 4},
    "window": {"pattern": ("window", "attention"), "window": 3, "num_layers": 3},
    "alibi_window_cap": {
        "positions": "alibi",
        "pattern": ("window",),
        "window": 4,
        "attention_softcap": 0.5,
        "num_kv_heads": 2,
    },
    "bert": {
        **GPT2,
        "norm_position": "post",
        "mlp": "gelu_exact",
        "attention": "bidirectional",
        "embedding_norm": "layernorm",
        "token_types": 2,
    },
    "bidirectional_rope_window_cap": {
        "attention": "bidirectional",
        "pattern": ("window", "attention"),
        "window": 3,
        "num_kv_heads": 2,
        "attention_softcap": 0.7,
        "embedding_norm": "rmsnorm",
    },
    "bidirectional_alibi_window": {
        "attention": "bidirectional",
        "positions": "alibi",
        "pattern": ("window", "nope"),
        "window": 4,
    },
    "no_positions": {
        "positions": "none",
        "norm": "layernorm",
        "biases": "qkv",
        "mlp": "relu_squared",
    },
}

MOE = {"ffns": ("moe",), "num_experts": 6, "expert_dim": 5}
STYLES |= {
    "parallel": {**GPT2, "positions": "rope", "rope_dim": 2, "sublayers": "parallel"},
    "sinks": {"attention_sinks": "learned", "num_kv_heads": 2, "biases": "attention"},
    "experts": {**MOE, "shared_experts": 2},
    "clamped_experts": {**MOE, "mlp": "silu_clamped_gated", "biases": "all"},
    "latent": {
        **MOE,
        "pattern": ("latent",),
        "head_dim": 6,
        "rope_dim": 2,
        "value_dim": 3,
        "kv_latent_dim": 5,
        "query_latent_dim": 7,
        "router": "sigmoid_renormalized",
        "router_scale": 1.5,
        "expert_groups": 3,
        "expert_groups_kept": 2,
    },
    "latent_softmax_groups": {
        **MOE,
        "pattern": ("latent",),
        "head_dim": 6,
        "rope_dim": 4,
        "kv_latent_dim": 5,
        "router": "softmax",
        "expert_groups": 3,
        "expert_groups_kept": 2,
    },
}
STYLES |= {
    f"prefix_{name}": {**STYLES[name], "attention": "prefix"}
    for name in ("llama", "alibi", "latent")
}
PREFIXES = ((4,), (2, 3))  # tokens of the prompt of each document
NORM_NAMES = ("mixer_norm", "mlp_norm")


class Reference:
    """A transformer decoder in NumPy, one row and one head at a time."""

    def __init__(self, config, params):
        self.c = config
        self.p = {
            name: np.asarray(x, np.float64) for name, x in flatten_with_names(params)
        }

    def logits(self, tokens, positions, segments):
        rows = zip(tokens, positions, segments, strict=True)
        return np.stack([self.row(*row) for row in rows])

    def row(self, tokens, positions, segments):
        c, p = self.c, self.p
        x = p["embedding"][tokens]
        if c.positions == "learned":
            x = x + p["position_embedding"][positions]
        if c.token_types:
            x = x + p["type_embedding"][0]
        if c.embedding_norm:
            x = self.norm(c.embedding_norm, p, "embedding_norm", x)
        period = len(c.pattern)
        for layer in range(c.num_layers):
            whole = layer // period < c.num_layers // period
            stack, plane = ("blocks", layer // period) if whole else ("tail", 0)
            start = f"{stack}/{layer % period}/"
            block = {
                name.removeprefix(start): value[plane]
                for name, value in p.items()
                if name.startswith(start)
            }
            window = c.window if c.pattern[layer % period] == "window" else None
            mix = lambda y, b=block, w=window: self.attend(b, y, positions, segments, w)  # noqa: E731
            mlp = lambda y, b=block: self.mlp(b, y)  # noqa: E731
            if c.sublayers == "parallel":
                first, second = (self.norm(c.norm, block, n, x) for n in NORM_NAMES)
                x = x + mix(first) + mlp(second)
                continue
            for name, sublayer in zip(NORM_NAMES, (mix, mlp), strict=True):
                if c.norm_position == "pre":
                    x = x + sublayer(self.norm(c.norm, block, name, x))
                else:
                    x = self.norm(c.norm, block, name, x + sublayer(x))
        if c.norm_position == "pre":
            x = self.norm(c.norm, p, "final_norm", x)
        z = x @ p["head" if c.head == "untied" else "embedding"].T
        return z if c.logit_softcap is None else self.cap(z, c.logit_softcap)

    @staticmethod
    def cap(x, cap):
        return cap * np.tanh(x / cap)

    def norm(self, kind, values, name, x):
        if kind == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        epsilon = 1e-6 if "latent" in name else self.c.norm_epsilon
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        return x * values[f"{name}/scale"] + values.get(f"{name}/bias", 0)

    def mlp(self, b, x):
        return self.experts(b, x) if "moe/router/kernel" in b else self.dense(b, x)

    def experts(self, b, x):
        """Token by token: the K best scores, those experts, those weights."""
        c, out = self.c, np.zeros_like(x)
        for t, row in enumerate(x):
            logits = row @ b["moe/router/kernel"] + b.get("moe/router/bias", 0)
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
            if c.router.startswith("sigmoid"):
                scores = 1 / (1 + np.exp(-logits))
            choice = scores + b.get("moe/choice_bias", 0)
            if c.expert_groups > 1:
                groups = choice.reshape(c.expert_groups, -1)
                best = np.sort(groups)[
                    :, -(2 if c.router.startswith("sigmoid") else 1) :
                ]
                kept = np.argsort(best.sum(1))[-c.expert_groups_kept :]
                others = [g for g in range(c.expert_groups) if g not in kept]
                groups[others] = -np.inf
                choice = groups.reshape(-1)
            chosen = np.argsort(choice)[-c.experts_per_token :]
            total = scores[chosen].sum() if c.router.endswith("renormalized") else 1
            for e in chosen:
                own = {
                    f"mlp/{name}/{leaf}": b[f"moe/experts_{name}/{leaf}"][e]
                    for name in ("gate", "up", "down")
                    for leaf in ("kernel", "bias")
                    if f"moe/experts_{name}/{leaf}" in b
                }
                weight = c.router_scale * scores[e] / total
                out[t] += weight * self.dense(own, row[None])[0]
        if c.shared_experts:
            shared = {n.replace("moe/shared", "mlp"): v for n, v in b.items()}
            out = out + self.dense(shared, x)
        return out

    def dense(self, b, x):
        def gelu(y):
            return y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

        def linear(name, y):
            return y @ b[f"mlp/{name}/kernel"] + b.get(f"mlp/{name}/bias", 0)

        up = linear("up", x)
        if self.c.mlp == "silu_gated":
            gate = linear("gate", x)
            hidden = gate / (1 + np.exp(-gate)) * up
        elif self.c.mlp == "silu_clamped_gated":
            gate, up = np.minimum(linear("gate", x), 7), np.clip(up, -7, 7)
            hidden = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        elif self.c.mlp == "gelu_gated":
            hidden = gelu(linear("gate", x)) * up
        else:
            hidden = {
                "gelu": gelu,
                "gelu_exact": lambda y: y / 2 * (1 + ERF(y / np.sqrt(2))),
                "relu_squared": lambda y: np.maximum(y, 0) ** 2,
            }[self.c.mlp](up)
        return linear("down", hidden)

    def rotate(self, x, position):
        """RoFormer eq. 34 on the pairs (i, i + H/2): a turn in the complex plane."""
        half = len(x) // 2
        turn = self.c.rope_base ** (-2 * np.arange(half) / len(x))
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * turn)
        return np.concatenate([turned.real, turned.imag])

    def heads(self, b, x, positions, head):
        """Returns queries, keys and values of one head, rotated: [L, ·] each."""
        c = self.c
        if "latent" in c.pattern:
            return self.latent_heads(b, x, positions, head)
        kv_head = head // (c.num_heads // c.num_kv_heads)
        q, k, v = (
            x @ b[f"attention/{name}/kernel"][:, h]
            + b.get(f"attention/{name}/bias", np.zeros(99))[h]
            for name, h in (("query", head), ("key", kv_head), ("value", kv_head))
        )
        if c.qk_norm:
            q = self.norm(c.qk_norm, b, "attention/query_norm", q)
            k = self.norm(c.qk_norm, b, "attention/key_norm", k)
        if c.positions == "rope":
            size, turn = c.rope_dim or c.head_dim, self.rotate
            q, k = (
                np.stack(
                    [
                        np.concatenate([turn(row[:size], at), row[size:]])
                        for row, at in zip(y, positions, strict=True)
                    ]
                )
                for y in (q, k)
            )
        return q, k, v

    def latent_heads(self, b, x, positions, head):
        """DeepSeek-V2, eqs. 9 to 19: what is rotated comes after what is not."""
        p = lambda name: b[f"attention/{name}/kernel"]  # noqa: E731
        queries, up = x, "query"
        if self.c.query_latent_dim:
            queries, up = x @ p("query_latent"), "query_up"
            queries = self.norm("rmsnorm", b, "attention/query_latent_norm", queries)
        latent = self.norm("rmsnorm", b, "attention/latent_norm", x @ p("latent"))
        turned = lambda y: np.stack(  # noqa: E731
            [self.rotate(row, at) for row, at in zip(y, positions, strict=True)]
        )
        q = [
            queries @ p(f"{up}_nope")[:, head],
            turned(queries @ p(f"{up}_rope")[:, head]),
        ]
        k = [latent @ p("key")[:, head], turned(x @ p("key_rope"))]
        v = latent @ p("value")[:, head]
        return np.concatenate(q, axis=1), np.concatenate(k, axis=1), v

    def slope(self, head):
        """The slopes of ALiBi's authors, for 4, 6 and 8 heads."""
        n = self.c.num_heads
        if n == 6:
            return [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8][head]
        return 2.0 ** (-8 * (head + 1) / n)

    def in_prompt(self, place, segments):
        """Whether a token is one of the first of its document, as many as given."""
        first = list(segments).index(segments[place])
        row = PREFIXES[0 if segments[-1] else 1]
        return segments[place] and place - first < row[segments[place] - 1]

    def attend(self, b, x, positions, segments, window):
        c, length = self.c, len(x)
        out = np.zeros_like(x)
        for head in range(c.num_heads):
            q, k, v = self.heads(b, x, positions, head)
            for i in range(length):
                seen = [
                    j
                    for j in range(length)
                    if j <= i
                    or c.attention == "bidirectional"
                    or (c.attention == "prefix" and self.in_prompt(j, segments))
                    if segments[j] == segments[i] != 0
                    and (window is None or abs(i - j) < window)
                ]
                if not seen:
                    continue
                scores = k[seen] @ q[i] / np.sqrt(c.head_dim)
                if c.attention_softcap is not None:
                    scores = self.cap(scores, c.attention_softcap)
                if c.positions == "alibi":
                    scores = scores - self.slope(head) * np.abs(i - np.array(seen))
                weights = np.exp(scores - scores.max())
                total = weights.sum()
                if c.attention_sinks:
                    total += np.exp(b["attention/sinks"][head] - scores.max())
                weights /= total
                out[i] += weights @ v[seen] @ b["attention/out/kernel"][head]
        return out + b.get("attention/out/bias", 0)


def batch():
    """Returns tokens, positions and segments: one document; two and padding."""
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
    positions = np.stack([np.arange(LENGTH), [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])
    segments = np.stack([np.ones(LENGTH, int), [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]])
    return tuple(x.astype(np.int32) for x in (tokens, positions, segments))


def prompts():
    """Returns which tokens are of the prompts that `PREFIXES` counts."""
    _, positions, segments = batch()
    lengths = [[0, *row] for row in PREFIXES]
    return np.array(
        [
            [at < n[s] for at, s in zip(p, ss, strict=True)]
            for p, ss, n in zip(positions, segments, lengths, strict=True)
        ]
    )


@pytest.fixture(scope="module", params=STYLES)
def case(request):
    """Returns config, parameters, the loss's weights, and logits and gradients."""
    shape = {"width": 16, "num_layers": 2, "num_heads": 4, "mlp_dim": 12}
    config = resolve(
        ModelConfig(
            **{**shape, **STYLES[request.param]},
            vocab_size=VOCAB,
            context_length=LENGTH,
            compute_dtype="float32",
        )
    )
    tokens, positions, segments = batch()
    decoder = Decoder(config)
    rng = np.random.default_rng(2)
    # Random biases and scales too: at 0 and 1 mistakes in them would not show.
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape, np.float32),
        nn.meta.unbox(abstract_params(config)),
    )
    weights = rng.normal(size=(2, LENGTH, VOCAB)) * (segments != 0)[..., None]

    def loss(params):
        hidden = decoder.apply(
            {"params": params},
            tokens,
            positions=positions,
            segment_ids=segments,
            prefix=prompts() if config.attention == "prefix" else None,
        )
        logits = head_logits(config, params, hidden)
        return jnp.sum(logits * weights.astype(np.float32)), logits

    gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
    quickly = {"xla_backend_optimization_level": 0}  # it runs once
    grads, logits = gradient.compile(compiler_options=quickly)(params)
    return config, params, weights, logits, grads


def test_logits_are_those_of_a_float64_numpy_decoder(case):
    config, params, _, logits, _ = case
    tokens, positions, segments = batch()
    expected = Reference(config, params).logits(tokens, positions, segments)
    assert logits.dtype == jnp.float32
    real = segments != 0
    assert np.abs(expected[real]).max() > 0.3
    np.testing.assert_allclose(logits[real], expected[real], rtol=1e-4, atol=1e-4)


def test_gradients_are_the_differences_of_a_float64_numpy_decoder(case):
    config, params, weights, _, grads = case
    reference, inputs = Reference(config, params), batch()
    rng, step = np.random.default_rng(3), 1e-5
    names = [name for name, _ in flatten_with_names(params)]
    assert names == list(reference.p)
    for name, grad in flatten_with_names(grads):
        value = reference.p[name]
        direction = rng.normal(size=value.shape)
        direction /= np.linalg.norm(direction)
        total = []
        for sign in (1, -1):
            reference.p[name] = value + sign * step * direction
            total.append(np.sum(reference.logits(*inputs) * weights))
        reference.p[name] = value
        expected = (total[0] - total[1]) / (2 * step)
        found = np.sum(np.asarray(grad, np.float64) * direction)
        scale = np.linalg.norm(grad) / np.sqrt(grad.size)
        assert abs(found - expected) <= 1e-4 * abs(expected) + 1e-3 * scale + 1e-5, name
