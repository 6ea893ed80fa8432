"""How families of their own kind are read and written: GPT-2, GPT-NeoX and BERT."""

from __future__ import annotations

from typing import Any

from lmx.core.model_schema import Architecture
from lmx.interop.hf_fields import Fields
from lmx.interop.hf_rope import read_rope, write_rope

BERT_GELUS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}


def read_gpt2(f: Fields) -> dict[str, Any]:
    """Learned positions and biases everywhere."""
    f.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    f.only("scale_attn_weights", True)
    f.only("tie_word_embeddings", True)
    for name in (
        *("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
        "add_cross_attention",
    ):
        f.only(name, False)
    width = f.number("n_embd")
    return {
        "vocab_size": f.number("vocab_size"),
        "context_length": f.number("n_positions"),
        "width": width,
        "num_layers": f.number("n_layer"),
        "num_heads": f.number("n_head"),
        "mlp_dim": f.number("n_inner", 4 * width),
        "norm_epsilon": f.real("layer_norm_epsilon", 1e-5),
        "init_scale": f.real("initializer_range", 0.02),
        "positions": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "biases": "all",
        "head": "tied",
    }


def write_gpt2(m: Architecture) -> dict[str, Any]:
    """Writes the sizes; all else is always the same."""
    return {
        "vocab_size": m.vocab_size,
        "n_positions": m.context_length,
        "n_embd": m.width,
        "n_layer": m.num_layers,
        "n_head": m.num_heads,
        "n_inner": m.mlp_dim,
        "layer_norm_epsilon": m.norm_epsilon,
        "initializer_range": m.init_scale,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }


NEOX_GELUS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_fast": "gelu"}


def read_gpt_neox(f: Fields) -> dict[str, Any]:
    """Partly rotated heads, MLP beside attention (Pythia, arXiv:2304.01373)."""
    act = f.take("hidden_act", "gelu")
    if act not in NEOX_GELUS:
        raise f.refusal("hidden_act", act, f"lmx can express {', '.join(NEOX_GELUS)}")
    f.only("attention_bias", True)
    f.only("is_decoder", True, False)
    part = f.real("rotary_pct", 0.25)
    f.put("rope_theta", f.look("rope_theta", f.take("rotary_emb_base", 10_000.0)))
    f.take("rotary_emb_base")
    width, heads = f.number("hidden_size"), f.number("num_attention_heads")
    length = f.number("max_position_embeddings", 2048)
    parallel = f.take("use_parallel_residual", True)
    return {
        "vocab_size": f.number("vocab_size"),
        "width": width,
        "num_layers": f.number("num_hidden_layers"),
        "num_heads": heads,
        "mlp_dim": f.number("intermediate_size"),
        "norm_epsilon": f.real("layer_norm_eps", 1e-5),
        "init_scale": f.real("initializer_range", 0.02),
        "head": "tied" if f.take("tie_word_embeddings", False) else "untied",
        "sublayers": "parallel" if parallel else "sequential",
        "norm": "layernorm",
        "mlp": NEOX_GELUS[act],
        "biases": "all",
        **read_rope(f, length=length, head_dim=max(1, width // heads), partial=part),
    }


def write_gpt_neox(m: Architecture) -> dict[str, Any]:
    """Writes rotation under its old names too."""
    rope = write_rope(m, partial=True)
    return {
        "vocab_size": m.vocab_size,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_heads,
        "intermediate_size": m.mlp_dim,
        "layer_norm_eps": m.norm_epsilon,
        "initializer_range": m.init_scale,
        "tie_word_embeddings": m.head == "tied",
        "hidden_act": "gelu_new" if m.mlp == "gelu" else "gelu",
        "use_parallel_residual": m.sublayers == "parallel",
        "rotary_pct": rope["rope_parameters"]["partial_rotary_factor"],
        "rotary_emb_base": m.rope_base,
        **{k: v for k, v in rope.items() if k != "rope_theta"},
    }


def read_bert(f: Fields) -> dict[str, Any]:
    """An encoder: sees both ways, normalises sums, and its embeddings too."""
    f.only("position_embedding_type", "absolute")
    for name in ("is_decoder", "add_cross_attention"):
        f.only(name, False)
    f.take("tie_word_embeddings")  # of a head that is not there
    act = f.take("hidden_act", "gelu")
    if act not in BERT_GELUS:
        raise f.refusal("hidden_act", act, f"lmx can express {', '.join(BERT_GELUS)}")
    return {
        "vocab_size": f.number("vocab_size", 30522),
        "context_length": f.number("max_position_embeddings", 512),
        "width": f.number("hidden_size", 768),
        "num_layers": f.number("num_hidden_layers", 12),
        "num_heads": f.number("num_attention_heads", 12),
        "mlp_dim": f.number("intermediate_size", 3072),
        "norm_epsilon": f.real("layer_norm_eps", 1e-12),
        "init_scale": f.real("initializer_range", 0.02),
        "token_types": f.number("type_vocab_size", 2),
        "mlp": BERT_GELUS[act],
        "attention": "bidirectional",
        "positions": "learned",
        "norm": "layernorm",
        "norm_position": "post",
        "embedding_norm": "layernorm",
        "biases": "all",
        "head": "tied",  # to nothing: an encoder has no use for a head
    }


def unused_bert(f: Fields) -> dict[str, str]:
    """Names the layer that training alone needs."""
    return {
        r"^pooler\.dense\.(weight|bias)$": "BERT's pooler guesses the next sentence; "
        "embeddings are pooled from hidden states"
    }


def write_bert(m: Architecture) -> dict[str, Any]:
    """Writes the sizes and the activation."""
    return {
        "vocab_size": m.vocab_size,
        "max_position_embeddings": m.context_length,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_heads,
        "intermediate_size": m.mlp_dim,
        "layer_norm_eps": m.norm_epsilon,
        "initializer_range": m.init_scale,
        "type_vocab_size": m.token_types or 1,
        "hidden_act": "gelu_pytorch_tanh" if m.mlp == "gelu" else "gelu",
        "position_embedding_type": "absolute",
    }
