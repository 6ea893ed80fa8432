"""Published architectures as numbers: what differs from the defaults of ModelConfig.

`family("gpt2_124m")` is a dict for `config.model.update(...)` in an experiment.
"""

from __future__ import annotations

from typing import Any

from lmx.core.errors import pick

GPT2 = {
    "vocab_size": 50_257,
    "context_length": 1024,
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "biases": "all",
}
LLAMA3 = {
    "vocab_size": 128_256,
    "context_length": 8192,
    "rope_base": 500_000.0,
    "head": "untied",
}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2_124m": {**GPT2, "num_layers": 12, "num_heads": 12, "width": 768},
    "gpt2_355m": {**GPT2, "num_layers": 24, "num_heads": 16, "width": 1024},
    "gpt2_774m": {**GPT2, "num_layers": 36, "num_heads": 20, "width": 1280},
    "gpt2_1558m": {**GPT2, "num_layers": 48, "num_heads": 25, "width": 1600},
    "llama3_8b": {
        **LLAMA3,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "width": 4096,
        "mlp_dim": 14_336,
    },
    "pythia_1b": {
        "vocab_size": 50_304,
        "context_length": 2048,
        "num_layers": 16,
        "num_heads": 8,
        "width": 2048,
        "rope_dim": 64,
        "norm": "layernorm",
        "mlp": "gelu_exact",
        "biases": "all",
        "head": "untied",
        "sublayers": "parallel",
    },
    "mixtral_8x7b": {
        "vocab_size": 32_000,
        "context_length": 32_768,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "width": 4096,
        "expert_dim": 14_336,
        "ffns": ("moe",),
        "num_experts": 8,
        "experts_per_token": 2,
        "rope_base": 1e6,
        "head": "untied",
    },
    "qwen3_30b_a3b": {
        "vocab_size": 151_936,
        "context_length": 40_960,
        "num_layers": 48,
        "num_heads": 32,
        "num_kv_heads": 4,
        "head_dim": 128,
        "width": 2048,
        "expert_dim": 768,
        "ffns": ("moe",),
        "num_experts": 128,
        "experts_per_token": 8,
        "qk_norm": "rmsnorm",
        "rope_base": 1e6,
        "head": "untied",
    },
    "gpt_oss_20b": {
        "vocab_size": 201_088,
        "context_length": 131_072,
        "num_layers": 24,
        "num_heads": 64,
        "num_kv_heads": 8,
        "head_dim": 64,
        "width": 2880,
        "expert_dim": 2880,
        "pattern": ("window", "attention"),
        "window": 128,
        "attention_sinks": "learned",
        "ffns": ("moe",),
        "num_experts": 32,
        "experts_per_token": 4,
        "mlp": "silu_clamped_gated",
        "biases": "all",
        "rope_base": 150_000.0,
        "rope_scaling": "yarn_exact",
        "rope_factor": 32.0,
        "rope_original_length": 4096,
        "head": "untied",
    },
    "deepseek_v3": {
        "vocab_size": 129_280,
        "context_length": 4096,
        "num_layers": 61,
        "dense_layers": 3,
        "num_heads": 128,
        "head_dim": 192,
        "rope_dim": 64,
        "value_dim": 128,
        "kv_latent_dim": 512,
        "query_latent_dim": 1536,
        "pattern": ("latent",),
        "width": 7168,
        "mlp_dim": 18_432,
        "expert_dim": 2048,
        "ffns": ("moe",),
        "num_experts": 256,
        "experts_per_token": 8,
        "shared_experts": 1,
        "expert_groups": 8,
        "expert_groups_kept": 4,
        "router": "sigmoid_renormalized",
        "router_scale": 2.5,
        "head": "untied",
    },
}


def family(name: str) -> dict[str, Any]:
    """Returns a copy of the model section of the published architecture `name`."""
    return dict(pick(FAMILIES, name, "model family"))
