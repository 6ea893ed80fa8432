"""How many parameters a model has and how many FLOPs it takes, in closed form.

Pure arithmetic: it needs no JAX, so `lmx config show` can print a count at once.
"""

from __future__ import annotations

from lmx.core.model_schema import Architecture


def parameter_count(c: Architecture) -> int:
    """Returns the number of parameters of a filled-in config."""
    final = _norm(c) if c.norm_position != "post" else 0
    return _tables(c) + sum(_layers(c, experts=c.num_experts)) + final


def flops_per_token(c: Architecture, *, length: int | None = None) -> float:
    """Returns the FLOPs of one training step per token, as MFU counts them.

    In rows of `length` tokens; None is the model's context.

    6 per parameter that multiplies a token, and 6 · heads · (query size + value size) ·
    context for attention without the saving of causality (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B). A window shortens the context of its layers; of a
    mixture only the experts of a token count.
    """
    multiplies = sum(_layers(c, experts=c.experts_per_token)) + c.vocab_size * c.width
    multiplies += _norm(c) if c.norm_position != "post" else 0
    multiplies += _embedding_norm(c)
    length = length or c.context_length
    window = c.window or length
    window = window if c.attention != "bidirectional" else 2 * window - 1
    scores = 0
    for i in range(c.num_layers):
        mixer = c.pattern[i % len(c.pattern)]
        seen = min(length, window) if mixer == "window" else length
        value = c.value_dim if mixer == "latent" else c.head_dim
        scores += seen * (c.head_dim + value)
    return 6 * multiplies + 6 * c.num_heads * scores


def _layers(c: Architecture, *, experts: int) -> list[int]:
    """Returns the parameters of each layer, of its experts so many."""
    norms = (4 if c.norm_position == "both" else 2) * _norm(c)
    counts = []
    for i in range(c.num_layers):
        latent = c.pattern[i % len(c.pattern)] == "latent"
        dense = i < c.dense_layers or c.ffns[i % len(c.ffns)] == "mlp"
        mixer = _latent_attention(c) if latent else _attention(c)
        counts.append(
            mixer + (_mlp(c, c.mlp_dim) if dense else _moe(c, experts)) + norms
        )
    return counts


def _vector(c: Architecture, kind: str | None, size: int) -> int:
    """Returns the parameters of the norm `kind` of `size`."""
    return size * (2 if kind == "layernorm" and c.biases == "all" else 1)


def _norm(c: Architecture) -> int:
    return _vector(c, c.norm, c.width)


def _embedding_norm(c: Architecture) -> int:
    return _vector(c, c.embedding_norm, c.width) if c.embedding_norm else 0


def _tables(c: Architecture) -> int:
    rows = c.vocab_size * (1 if c.head == "tied" else 2)
    rows += c.context_length if c.positions == "learned" else 0
    rows += c.token_types or 0
    return rows * c.width + _embedding_norm(c)


def _attention(c: Architecture) -> int:
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    count = c.width * (2 * heads + 2 * kv_heads)
    count += (heads + 2 * kv_heads) * (c.biases != "none")
    count += c.width * (c.biases in ("attention", "all"))
    count += c.num_heads * (c.attention_sinks is not None)
    if c.qk_norm == "rmsnorm_all_heads":
        return count + heads + kv_heads
    return count + (2 * _vector(c, c.qk_norm, c.head_dim) if c.qk_norm else 0)


def _latent_attention(c: Architecture) -> int:
    rotated, latent = c.rope_dim or 0, c.kv_latent_dim or 0
    source, count = c.width, 0
    if c.query_latent_dim is not None:
        source = c.query_latent_dim
        count = c.width * source + source
    count += source * c.num_heads * c.head_dim
    count += c.width * (latent + rotated) + latent
    count += latent * c.num_heads * (c.head_dim - rotated + c.value_dim)
    count += c.num_heads * c.value_dim * c.width
    return count + c.width * (c.biases in ("attention", "all"))


def _mlp(c: Architecture, hidden: int) -> int:
    ups = 2 if c.mlp.endswith("_gated") else 1
    biases = (ups * hidden + c.width) * (c.biases == "all")
    return (ups + 1) * c.width * hidden + biases


def _moe(c: Architecture, experts: int) -> int:
    count = c.width * c.num_experts + c.num_experts * (c.biases == "all")
    count += c.num_experts * c.router.startswith("sigmoid")
    count += experts * _mlp(c, c.expert_dim)
    shared = c.shared_experts * c.expert_dim
    return count + (_mlp(c, shared) if shared else 0)
