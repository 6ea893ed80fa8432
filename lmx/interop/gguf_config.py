"""Model options from the metadata of a GGUF file, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmx.core.errors import UserError, pick
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_rope import FACTORS, LENGTH, read_rope_factors, rope_factors
from lmx.interop.hf_config import write_config
from lmx.interop.hf_fields import Fields
from lmx.interop.names import GGUF_GPT2, GGUF_LLAMA, GGUF_QWEN, Row

# general.architecture → names of tensors, and the options that it stands for.
ARCHITECTURES: dict[str, tuple[Sequence[Row], dict[str, Any]]] = {
    "llama": (GGUF_LLAMA, {}),
    "qwen2": (GGUF_QWEN, {"biases": "qkv"}),
    "qwen3": (GGUF_QWEN, {"qk_norm": "rmsnorm"}),
    "gpt2": (
        GGUF_GPT2,
        {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"},
    ),
}


def read_gguf_config(file: GGUFFile) -> tuple[ModelConfig, Sequence[Row]]:
    """Returns the model options of a file and the names of its tensors.

    Raises:
      UserError: an architecture or a key cannot be expressed; it is named.
    """
    kind = str(file.metadata.get("general.architecture"))
    rows, fixed = pick(ARCHITECTURES, kind, f"{file.path}: general.architecture")
    keys, tables = _fields(file, f"{kind}."), file.tensors
    heads, width = keys.number("attention.head_count"), keys.number("embedding_length")
    if "token_embd.weight" not in tables:
        raise UserError(f"{file.path} lacks the tensor token_embd.weight")
    head_dim = keys.number("attention.key_length", width // heads)
    epsilon = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    options = {
        "vocab_size": tables["token_embd.weight"].shape[0],
        "context_length": keys.number("context_length"),
        "width": width,
        "num_layers": keys.number("block_count"),
        "num_heads": heads,
        "num_kv_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "mlp_dim": keys.number("feed_forward_length"),
        # Stored in 32 bits: 1e-5 comes back as 9.99999974e-06.
        "norm_epsilon": float(f"{keys.real(f'attention.{epsilon}'):.6g}"),
        "rope_base": keys.real("rope.freq_base", 10_000.0),
        "head": "untied" if "output.weight" in tables else "tied",
        **fixed,
    }
    scaling = keys.take("rope.scaling.type", "none")
    if scaling == "linear" and FACTORS not in tables:
        options["rope_scaling"] = "linear"
        options["rope_factor"] = keys.real("rope.scaling.factor")
    elif scaling != "none":
        why = f"lmx can express 'linear', or {FACTORS} alone"
        raise keys.refusal("rope.scaling.type", scaling, why)
    if FACTORS in tables:
        told = keys.number(LENGTH) if keys.look(LENGTH, None) is not None else None
        factors = file.read(FACTORS)
        options |= read_rope_factors(factors, options, told, str(file.path))
    keys.take("vocab_size")  # the embedding says it
    keys.only("attention.value_length", head_dim)
    keys.only("rope.dimension_count", head_dim)
    keys.finish()
    return dataclasses.replace(ModelConfig(), **options), rows


def _fields(file: GGUFFile, prefix: str) -> Fields:
    """Returns what a file says of its architecture."""
    values = {
        key.removeprefix(prefix): value.tolist() if hasattr(value, "tolist") else value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    return Fields(values, str(file.path), prefix)


def write_gguf_config(m: Architecture) -> tuple[dict[str, Any], Sequence[Row]]:
    """Returns the metadata that describes `m`, and the names of its tensors.

    Raises:
      UserError: no architecture expresses it.
    """
    kind, _ = write_config(m)
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"a model of the family {kind!r} cannot be written to GGUF, of which lmx "
            f"knows {known}; export to hf"
        )
    rows, fixed = ARCHITECTURES[kind]
    # Biases of queries would have to be turned as their kernels are.
    allowed = {
        "rope_scaling": (None, "linear", "llama3"),
        "biases": (fixed.get("biases", "none"),),
    }
    for name, values_here in allowed.items():
        if getattr(m, name) not in values_here:
            raise UserError(
                f"model.{name}={getattr(m, name)!r} of the family {kind!r} cannot be "
                "written to GGUF; export to hf"
            )
    epsilon = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    values: dict[str, Any] = {
        "context_length": m.context_length,
        "embedding_length": m.width,
        "block_count": m.num_layers,
        "feed_forward_length": m.mlp_dim,
        "attention.head_count": m.num_heads,
        "attention.head_count_kv": m.num_kv_heads,
        f"attention.{epsilon}": m.norm_epsilon,
        "vocab_size": m.vocab_size,
    }
    if m.positions == "rope":
        values |= {
            "rope.freq_base": m.rope_base,
            "rope.dimension_count": m.head_dim,
            "attention.key_length": m.head_dim,
            "attention.value_length": m.head_dim,
        }
    if m.rope_scaling == "llama3":
        values[LENGTH] = m.rope_original_length
        options = {f.name: getattr(m, f.name) for f in dataclasses.fields(ModelConfig)}
        read_rope_factors(rope_factors(m), options, m.rope_original_length, "export")
    if m.rope_scaling == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": m.rope_factor}
    metadata = {f"{kind}.{key}": value for key, value in values.items()}
    return {"general.architecture": kind, **metadata}, rows
