"""Model options from a Hugging Face `config.json`, and back.

An export takes the first family whose reader gives the same model back from what its
writer wrote, so no table says which options a family lacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmx.core.errors import UserError, pick
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.interop.hf_families import FAMILIES
from lmx.interop.hf_fields import Fields
from lmx.models.decoder import layer_kinds
from lmx.models.positions import TURNS, attention_factor
from lmx.models.sizes import resolve

# How a model is computed, trained or found; all else decides its logits.
NOT_FORM = (
    *("size", "init_from", "init_scale", "layer_loop", "remat", "kernels"),
    *("param_dtype", "compute_dtype", "residual_dtype", "softmax_dtype"),
    *("expert_capacity", "pooling"),
)
# What only mixtures of experts read.
EXPERTS = (
    *("num_experts", "experts_per_token", "expert_dim", "shared_experts", "router"),
    *("router_scale", "expert_groups", "expert_groups_kept"),
)
FORM = [n for n in ModelConfig.__dataclass_fields__ if n not in NOT_FORM]


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


def write_config(
    model: Architecture, family: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Returns a family that expresses `model`, and its config.json.

    The named one is tried first: several may do, with tensors of other names.

    Raises:
      UserError: no family does; the option that the nearest one lacks is named.
    """
    misfits: list[tuple[int, str]] = []
    for name in sorted(FAMILIES, key=lambda name: name != family):
        fields = {
            "model_type": name,
            "architectures": [FAMILIES[name].architecture],
            **FAMILIES[name].write(model),
        }
        try:
            back = resolve(read_config(fields, "export")[1])
        except UserError:  # not a model of this kind at all
            continue
        lacks = [key for key in FORM if not _same(key, model, back)]
        if not lacks:
            return name, fields
        told = ", ".join(f"model.{key}={getattr(model, key)!r}" for key in lacks)
        misfits.append((len(lacks), f"{name} has no {told}"))
    raise UserError(f"no published format expresses this model: {min(misfits)[1]}")


def _same(key: str, m: Architecture, back: Architecture) -> bool:
    """Returns whether an option is the same in both, or has no effect in `m`."""
    if getattr(m, key) == getattr(back, key):
        return True
    kinds = layer_kinds(m)
    match key:
        case "rope_attention_factor":
            return attention_factor(m) == attention_factor(back)
        case "rope_turns":
            default = TURNS.get(str(m.rope_scaling))
            same = (m.rope_turns or default) == (back.rope_turns or default)
            return default is None or same
        case "rope_dim":
            same = (m.rope_dim or m.head_dim) == (back.rope_dim or back.head_dim)
            return m.positions != "rope" or same
        case "rope_base" | "rope_scaling":
            return m.positions != "rope"
        case "rope_factor" | "rope_original_length":
            return m.positions != "rope" or m.rope_scaling is None
        case "rope_short_factors" | "rope_long_factors":
            return m.rope_scaling != "longrope"
        case "attention_scale":  # the default, spelled out
            default = m.head_dim**-0.5
            return (m.attention_scale or default) == (back.attention_scale or default)
        case "window_rope_base" | "window":
            return "window" not in m.pattern
        case "kv_latent_dim" | "query_latent_dim" | "value_dim":
            return "latent" not in m.pattern
        case "pattern" | "ffns" | "dense_layers":
            return kinds == layer_kinds(back)
        case "mlp_dim":
            return all(kind.ffn != "mlp" for kind in kinds)
        case _ if key in EXPERTS:
            return all(kind.ffn != "moe" for kind in kinds)
    return False
