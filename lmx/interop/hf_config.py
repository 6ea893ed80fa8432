"""Model options from a Hugging Face `config.json`, and back.

An export takes the first family whose reader gives the same model back from what its
writer wrote, so no table says which options a family lacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmx.core.errors import UserError, pick
from lmx.core.schema import Architecture, ModelConfig
from lmx.interop.hf_families import FAMILIES
from lmx.interop.hf_fields import Fields

# What decides the logits; the rest (dtypes, remat, kernels, …) only computes them.
FORM = (
    *("vocab_size", "context_length", "width", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "mlp_dim", "pattern", "window", "positions"),
    *("rope_base", "rope_scaling", "rope_factor", "rope_original_length", "norm"),
    *("norm_position", "norm_epsilon", "qk_norm", "mlp", "biases", "head"),
    *("attention_softcap", "logit_softcap", "embedding_scale", "attention_scale"),
    *("window_rope_base", "attention", "embedding_norm", "token_types"),
)


def read_config(values: Mapping[str, Any], where: str) -> tuple[str, ModelConfig]:
    """Returns the family and the model options of a config.json.

    Raises:
      UserError: the family or a field cannot be expressed; it is named.
    """
    name = values.get("model_type")
    family = pick(FAMILIES, str(name), f"{where}: model_type")
    fields = Fields({**family.defaults, **values}, where)
    options = family.read(fields)
    fields.finish()
    return str(name), dataclasses.replace(ModelConfig(), **options)


def write_config(model: Architecture) -> tuple[str, dict[str, Any]]:
    """Returns the family that expresses `model`, and its config.json.

    Raises:
      UserError: no family does; the option that the nearest one lacks is named.
    """
    wanted = {name: getattr(model, name) for name in FORM}
    misfits: list[tuple[int, str]] = []
    for name, family in FAMILIES.items():
        fields = {
            "model_type": name,
            "architectures": [family.architecture],
            **family.write(model),
        }
        _, back = read_config(fields, "export")
        found = {key: getattr(back, key) for key in FORM}
        found |= {
            k: wanted[k] for k in ("num_kv_heads", "head_dim") if found[k] is None
        }
        wrong = [key for key in FORM if found[key] != wanted[key]]
        wrong = [k for k in wrong if not _idle(k, model)]
        if not wrong:
            return name, fields
        told = ", ".join(f"model.{key}={wanted[key]!r}" for key in wrong)
        misfits.append((len(wrong), f"{name} has no {told}"))
    raise UserError(f"no published format expresses this model: {min(misfits)[1]}")


def _idle(key: str, m: Architecture) -> bool:
    """Returns whether an option has no effect in this model."""
    match key:
        case "rope_base":
            return m.positions != "rope"
        case "rope_scaling" | "rope_factor" | "rope_original_length":
            return m.positions != "rope" or m.rope_scaling is None
        case "attention_scale":  # the default, spelled out
            return m.attention_scale is None or m.attention_scale == m.head_dim**-0.5
        case "window_rope_base" | "window":
            return "window" not in m.pattern
        case _:
            return False
