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
}


def family(name: str) -> dict[str, Any]:
    """Returns a copy of the model section of the published architecture `name`."""
    return dict(pick(FAMILIES, name, "model family"))
