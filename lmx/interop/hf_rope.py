"""Rotary positions in a `config.json`: base, scaling and the part that rotates."""

from __future__ import annotations

import math
from typing import Any

from lmx.core.model_schema import Architecture
from lmx.interop.hf_fields import Fields
from lmx.models.positions import TURNS, attention_factor

KINDS = ("linear", "llama3", "dynamic", "yarn", "longrope")
# What the two numbers of `rope_turns` are called.
TURN_FIELDS = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_slow", "beta_fast"),
}


def read_rope(
    f: Fields, *, length: int, head_dim: int, partial: float | None = None
) -> dict[str, Any]:
    """Returns the options of rotary positions, and the context that scaling makes.

    New files have all in `rope_parameters`. `length` and `head_dim` are the model's;
    families that can rotate a part of each head say how much by default (`partial`).
    """
    inner, kind = _fields(f)
    options: dict[str, Any] = {"rope_base": inner.real("rope_theta")}
    options["context_length"] = length
    if partial is not None:
        size = int(head_dim * inner.real("partial_rotary_factor", partial))
        options["rope_dim"] = None if size == head_dim else size
    else:
        inner.only("partial_rotary_factor", 1.0)
    if kind == "default":
        inner.take("factor")
    elif kind in KINDS:
        options |= _read_scaling(inner, kind, length, f)
    else:
        known = ", ".join(map(repr, KINDS))
        raise inner.refusal("rope_type", kind, f"lmx can express {known}")
    inner.finish()
    return options


def _fields(f: Fields) -> tuple[Fields, str]:
    """Returns all that a file says about rotation, and the kind of its scaling."""
    rope = {"rope_theta": f.real("rope_theta", 10_000.0)}
    if f.look("partial_rotary_factor", None) is not None:
        rope["partial_rotary_factor"] = f.take("partial_rotary_factor")
    rope |= {**f.table("rope_scaling"), **f.table("rope_parameters")}
    if "type" in rope:  # the older name
        rope.setdefault("rope_type", rope["type"])
        del rope["type"]
    inner = Fields(rope, f.where, "rope_parameters.")
    return inner, inner.take("rope_type", "default")


def _read_scaling(inner: Fields, kind: str, length: int, f: Fields) -> dict[str, Any]:
    options: dict[str, Any] = {"rope_scaling": kind}
    if kind == "linear":
        return {**options, "rope_factor": inner.real("factor")}
    if kind == "dynamic":  # the file's length is the one before
        factor = inner.real("factor")
        inner.take("original_max_position_embeddings")
        options |= {"rope_factor": factor, "rope_original_length": length}
        return {**options, "context_length": round(length * factor)}
    outer = f.take("original_max_position_embeddings")
    original = inner.number("original_max_position_embeddings", length)
    original = original if outer is None else outer
    factor = inner.real("factor", length / original)
    options |= {"rope_factor": factor, "rope_original_length": original}
    if kind in TURN_FIELDS:
        inner.take("finetuned")  # a note of the authors of YaRN
        turns = zip(TURN_FIELDS[kind], TURNS[kind], strict=True)
        found = tuple(inner.real(name, default) for name, default in turns)
        options["rope_turns"] = None if found == TURNS[kind] else found
    if kind == "llama3":
        return options
    if kind == "longrope":
        for name in ("short", "long"):
            options[f"rope_{name}_factors"] = inner.reals(f"{name}_factor")
    elif not inner.take("truncate", True):
        options["rope_scaling"] = "yarn_exact"
    given, implied = inner.cap("attention_factor"), _attention_factor(inner, factor)
    return {**options, "rope_attention_factor": implied if given is None else given}


def _attention_factor(inner: Fields, factor: float) -> float | None:
    """Returns what two more fields of DeepSeek's make of it, or None for the default.

    Each is a slope over log(factor); the second is for the softmax and divides here.
    """
    above, below = inner.take("mscale", 0), inner.take("mscale_all_dim", 0)
    if not above or not below or factor <= 1:
        return None
    return mscale(factor, above) / mscale(factor, below)


def mscale(factor: float, slope: float) -> float:
    """Returns 0.1 · slope · log(factor) + 1, and 1 where nothing is stretched."""
    return 0.1 * slope * math.log(factor) + 1 if factor > 1 else 1.0


def write_rope(m: Architecture, *, partial: bool = False) -> dict[str, Any]:
    """Returns the fields of rotary positions, the length of the context among them."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": m.rope_base}
    length = m.context_length
    if m.rope_scaling is not None:
        kind = "yarn" if m.rope_scaling == "yarn_exact" else m.rope_scaling
        rope |= {"rope_type": kind, "factor": m.rope_factor}
        if kind == "dynamic":
            length = m.rope_original_length or length
        elif kind != "linear":
            rope["original_max_position_embeddings"] = m.rope_original_length
        if kind in TURN_FIELDS:
            turns = m.rope_turns or TURNS[m.rope_scaling]
            rope |= dict(zip(TURN_FIELDS[kind], turns, strict=True))
        if kind == "longrope":
            rope["short_factor"] = list(m.rope_short_factors)
            rope["long_factor"] = list(m.rope_long_factors)
        if kind == "yarn":
            rope["truncate"] = m.rope_scaling == "yarn"
        if kind in ("yarn", "longrope"):
            rope["attention_factor"] = attention_factor(m)
    if partial:
        rope["partial_rotary_factor"] = (m.rope_dim or m.head_dim) / m.head_dim
    # Readers of transformers 4 know the two older fields, those of 5 the new one.
    inner = {k: v for k, v in rope.items() if k != "rope_theta"}
    return {
        "max_position_embeddings": length,
        "rope_theta": m.rope_base,
        "rope_scaling": None if m.rope_scaling is None else inner,
        "rope_parameters": rope,
    }
