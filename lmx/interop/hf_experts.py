"""How mixtures of experts are read and written."""

from __future__ import annotations

from typing import Any

from lmx.core.model_schema import Architecture
from lmx.interop.hf_fields import MOST_LAYERS, Fields
from lmx.interop.hf_llama import (
    layer_types,
    read_llama,
    shortest_period,
    windows_everywhere,
    write_llama,
    write_without_biases,
)
from lmx.interop.hf_rope import mscale
from lmx.models.decoder import layer_kinds

# How a router was trained, not what it computes.
TRAINING = (
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    *("aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers"),
)
# What gpt-oss scales rotation by where its file has neither of the two fields.
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read_experts(f: Fields) -> dict[str, Any]:
    """Reads how many experts there are, by either of two names."""
    for name in TRAINING:
        f.take(name)
    count, local = f.take("num_experts"), f.take("num_local_experts")
    f.put("num_experts", count if local is None else local)
    return {
        "num_experts": f.number("num_experts"),
        "experts_per_token": f.number("num_experts_per_tok"),
    }


def _read_all_experts(f: Fields, options: dict[str, Any]) -> dict[str, Any]:
    """Adds experts of the hidden width in every layer, none of which is dense."""
    sized = {"ffns": ("moe",), "expert_dim": options["mlp_dim"]}
    return {**options, **_read_experts(f), **sized}


def read_mixtral(f: Fields) -> dict[str, Any]:
    """Every layer has experts (arXiv:2401.04088)."""
    windows_everywhere(f)
    options = read_llama(f, windows=True, biases=False)
    return {**_read_all_experts(f, options), "router": "softmax_renormalized"}


def _read_norm(f: Fields, kind: str) -> str:
    """Returns the router, whose chosen weights may be made to sum to 1."""
    return f"{kind}_renormalized" if f.take("norm_topk_prob", False) else kind


def read_qwen3_moe(f: Fields) -> dict[str, Any]:
    """Every so many layers have experts, but for some that are named."""
    f.take("max_window_layers")
    f.only("use_qk_norm", True)
    if f.take("use_sliding_window", False):
        windows_everywhere(f)
    else:
        f.take("sliding_window")
    every, layers = f.number("decoder_sparse_step", 1), f.layers()
    dense = f.take("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(i) is int for i in dense):
        raise f.refusal("mlp_only_layers", dense, "a list of layers is due")
    ffns = ["mlp" if i in dense or (i + 1) % every else "moe" for i in range(layers)]
    options = read_llama(f, windows=True)
    return {
        **options,
        **_read_experts(f),
        "qk_norm": "rmsnorm",
        "expert_dim": f.number("moe_intermediate_size"),
        "router": _read_norm(f, "softmax"),
        "ffns": shortest_period(tuple(ffns)),
    }


def read_olmoe(f: Fields) -> dict[str, Any]:
    """Norms of queries and keys over all heads (arXiv:2409.02060)."""
    f.only("clip_qkv", None)
    options = {**read_llama(f), "qk_norm": "rmsnorm_all_heads"}
    return {**_read_all_experts(f, options), "router": _read_norm(f, "softmax")}


def read_gpt_oss(f: Fields) -> dict[str, Any]:
    """Sinks, biases everywhere, clamped gates, a window in every second layer."""
    if f.look("layer_types", None) is None:
        names = ("sliding_attention", "full_attention")
        f.put("layer_types", [names[i % 2] for i in range(f.layers())])
    if not any(f.look(name, None) for name in ("rope_scaling", "rope_parameters")):
        f.put("rope_parameters", GPT_OSS_ROPE)
    f.only("attention_bias", True)
    f.only("swiglu_alpha", 1.702)
    f.only("swiglu_limit", 7.0)
    for name in ("experts_per_token", "initial_context_length"):
        f.take(name)  # older names of fields that are there too
    options = {**read_llama(f, windows=True), "biases": "all"}
    return {
        **_read_all_experts(f, options),
        "router": "softmax_renormalized",
        "mlp": "silu_clamped_gated",
        "attention_sinks": "learned",
    }


def _read_deepseek(f: Fields) -> dict[str, Any]:
    """Reads latent attention and experts of which some work on every token."""
    for name in ("qk_head_dim", "head_dim", "num_key_value_heads"):
        f.take(name)  # follow from others
    f.only("moe_layer_freq", 1)
    rotated, plain = f.number("qk_rope_head_dim"), f.number("qk_nope_head_dim")
    query = f.take("q_lora_rank")
    if query is not None:
        f.put("q_lora_rank", query)
        query = f.number("q_lora_rank")
    rope = {**f.table("rope_scaling"), **f.table("rope_parameters")}
    f.put("rope_parameters", rope)
    f.put("head_dim", rotated)
    scale = (rotated + plain) ** -0.5
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        factor, slope = (rope.get(k) or 0.0 for k in ("factor", "mscale_all_dim"))
        scale *= mscale(float(factor), float(slope)) ** 2
    groups = f.number("n_group", 1)
    dense = f.take("first_k_dense_replace", 0)
    if type(dense) is not int or dense < 0:
        raise f.refusal("first_k_dense_replace", dense, "a number of layers is due")
    own = {
        "attention_scale": scale,
        "rope_dim": rotated,
        "kv_latent_dim": f.number("kv_lora_rank"),
        "query_latent_dim": query,
        "value_dim": f.number("v_head_dim"),
        "dense_layers": min(dense, f.layers()),
        "expert_dim": f.number("moe_intermediate_size"),
        "shared_experts": f.number("n_shared_experts"),
        "router_scale": f.real("routed_scaling_factor", 1.0),
        "expert_groups": groups,
        "expert_groups_kept": f.number("topk_group", groups),
    }
    f.put("num_experts", f.take("n_routed_experts"))
    options = {**read_llama(f, biases=False), **_read_experts(f), **own}
    heads = {"head_dim": rotated + plain, "num_kv_heads": options["num_heads"]}
    return {**options, **heads, "pattern": ("latent",), "ffns": ("moe",)}


def read_deepseek_v2(f: Fields) -> dict[str, Any]:
    """Softmax routing, greedy or among the best groups (arXiv:2405.04434)."""
    f.only("scoring_func", "softmax")
    f.only("norm_topk_prob", False)
    method = f.take("topk_method", "greedy")
    if method == "greedy":
        f.take("n_group")
        f.take("topk_group")
    elif method != "group_limited_greedy":
        known = "lmx can express 'greedy' and 'group_limited_greedy'"
        raise f.refusal("topk_method", method, known)
    return {**_read_deepseek(f), "router": "softmax"}


def read_deepseek_v3(f: Fields) -> dict[str, Any]:
    """Sigmoid routing with a bias to choose by (arXiv:2412.19437)."""
    f.only("scoring_func", "sigmoid")
    f.only("topk_method", "noaux_tc")
    f.only("rope_interleave", True)
    router = _read_norm(f, "sigmoid")
    return {**_read_deepseek(f), "router": router}


def unused_deepseek_v3(f: Fields) -> dict[str, str]:
    """Names the layers past the last, which guess several tokens at once."""
    count, layers = f.take("num_nextn_predict_layers", 0), f.layers()
    if type(count) is not int or not 0 <= count < MOST_LAYERS:
        raise f.refusal("num_nextn_predict_layers", count, "a number of layers is due")
    why = "DeepSeek-V3 guesses the second next token with it; lmx guesses the next"
    return {rf"^model\.layers\.{layers + i}\.": why for i in range(count)}


def write_mixtral(m: Architecture) -> dict[str, Any]:
    """Writes the hidden width of experts as that of the model."""
    return {
        **write_without_biases(m),
        "intermediate_size": m.expert_dim,
        "num_local_experts": m.num_experts,
        "num_experts_per_tok": m.experts_per_token,
        "sliding_window": m.window,
    }


def write_qwen3_moe(m: Architecture) -> dict[str, Any]:
    """Writes which layers are dense, one by one."""
    kinds = layer_kinds(m)
    fields = {k: v for k, v in write_llama(m).items() if k != "mlp_bias"}
    return {
        **fields,
        "num_experts": m.num_experts,
        "num_experts_per_tok": m.experts_per_token,
        "moe_intermediate_size": m.expert_dim,
        "norm_topk_prob": m.router == "softmax_renormalized",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind.ffn == "mlp"],
        "sliding_window": m.window,
        "use_sliding_window": m.window is not None,
    }


def write_olmoe(m: Architecture) -> dict[str, Any]:
    """Writes the hidden width of experts as that of the model."""
    fields = {k: v for k, v in write_llama(m).items() if k != "mlp_bias"}
    return {
        **{k: v for k, v in fields.items() if k != "head_dim"},
        "intermediate_size": m.expert_dim,
        "num_experts": m.num_experts,
        "num_experts_per_tok": m.experts_per_token,
        "norm_topk_prob": m.router == "softmax_renormalized",
    }


def write_gpt_oss(m: Architecture) -> dict[str, Any]:
    """Writes Mixtral's fields and the kind of each layer."""
    own = {"attention_bias": True, "swiglu_limit": 7.0}
    return {**write_mixtral(m), **layer_types(m), **own}


def _write_deepseek(m: Architecture) -> dict[str, Any]:
    fields = write_without_biases(m)
    rotated = m.rope_dim or 0
    slope = _mscale_all_dim(m)
    if slope:
        for name in ("rope_scaling", "rope_parameters"):
            fields[name] = {**fields[name], "mscale_all_dim": slope}
    return {
        **{k: v for k, v in fields.items() if k != "head_dim"},
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": m.head_dim - rotated,
        "v_head_dim": m.value_dim,
        "kv_lora_rank": m.kv_latent_dim,
        "q_lora_rank": m.query_latent_dim,
        "first_k_dense_replace": m.dense_layers,
        "n_routed_experts": m.num_experts,
        "num_experts_per_tok": m.experts_per_token,
        "n_shared_experts": m.shared_experts,
        "moe_intermediate_size": m.expert_dim,
        "routed_scaling_factor": m.router_scale,
        "n_group": m.expert_groups,
        "topk_group": m.expert_groups_kept,
    }


def _mscale_all_dim(m: Architecture) -> float:
    """Returns the slope over log(factor) that gives the model's scale on scores."""
    if m.rope_scaling is None or m.rope_factor <= 1:
        return 0.0
    root = ((m.attention_scale or m.head_dim**-0.5) * m.head_dim**0.5) ** 0.5
    # To as many digits as people write, so that it reads back as it was.
    return round((root - 1) / (mscale(m.rope_factor, 1.0) - 1), 9)


def write_deepseek_v2(m: Architecture) -> dict[str, Any]:
    """Writes groups only where there are some."""
    method = "greedy" if m.expert_groups == 1 else "group_limited_greedy"
    return {**_write_deepseek(m), "topk_method": method, "norm_topk_prob": False}


def write_deepseek_v3(m: Architecture) -> dict[str, Any]:
    """Writes the fields of the larger one, without heads for several tokens."""
    return {
        **_write_deepseek(m),
        "norm_topk_prob": m.router == "sigmoid_renormalized",
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
    }
