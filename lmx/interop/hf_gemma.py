"""How Gemma's three generations are read and written."""

from __future__ import annotations

from typing import Any

from lmx.core.model_schema import Architecture
from lmx.interop.hf_fields import Fields
from lmx.interop.hf_llama import layer_types, read_decoder, write_llama


def read_gemma(f: Fields, *, windows: bool = False) -> dict[str, Any]:
    """Scaled embeddings, norms of 1 + weight, a GELU gate."""
    # The first files say 'gelu' and mean its tanh form, as transformers knows.
    f.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    f.only("hidden_activation", "gelu_pytorch_tanh")
    f.only("use_bidirectional_attention", False)
    tied = f.take("tie_word_embeddings", True)
    options = read_decoder(f, windows=windows)
    return {
        **options,
        "head": "tied" if tied else "untied",
        "mlp": "gelu_gated",
        "norm": "rmsnorm_plus_one",
        "embedding_scale": options["width"] ** 0.5,
    }


def windows_but_every(f: Fields, every: int) -> None:
    """Sets the window on all but every so many layers, as older files mean it."""
    if f.look("layer_types", None) is None:
        names = ("full_attention", "sliding_attention")
        kinds = [names[(i + 1) % every != 0] for i in range(f.layers())]
        f.put("layer_types", kinds)


def read_gemma2(f: Fields) -> dict[str, Any]:
    """Norms before and after each sublayer, soft caps, a scale of its own."""
    windows_but_every(f, 2)
    f.only("sliding_window_size", None, f.look("sliding_window", None))
    own = {
        "norm_position": "both",
        "attention_softcap": f.cap("attn_logit_softcapping"),
        "logit_softcap": f.cap("final_logit_softcapping"),
        "attention_scale": f.real("query_pre_attn_scalar", 256) ** -0.5,
    }
    return {**read_gemma(f, windows=True), **own}


def read_gemma3(f: Fields) -> dict[str, Any]:
    """Norms of queries and keys, and another rotary base in layers with a window."""
    f.only("attn_logit_softcapping", None)  # transformers would not apply it
    name = "_sliding_window_pattern"
    every = f.number("sliding_window_pattern", f.number(name, 6))
    windows_but_every(f, every)
    base, local_base = f.real("rope_theta", 1e6), f.real("rope_local_base_freq", 1e4)
    ropes = f.table("rope_parameters")
    unknown = sorted(ropes.keys() - {"full_attention", "sliding_attention"})
    if unknown:
        raise f.refusal("rope_parameters", ropes, f"{unknown[0]!r} is for no layers")
    tables = Fields(ropes, f.where, "rope_parameters.")
    whole = {"rope_theta": base, **f.table("rope_scaling")}
    whole |= tables.table("full_attention")
    local = {"rope_theta": local_base, **tables.table("sliding_attention")}
    inner = Fields(local, f.where, "sliding_attention.")
    for key in ("rope_type", "type"):
        inner.only(key, "default")
    own = {"qk_norm": "rmsnorm_plus_one", "window_rope_base": inner.real("rope_theta")}
    inner.finish()
    f.put("rope_parameters", whole)
    return {**read_gemma2(f), **own}


def write_gemma(m: Architecture) -> dict[str, Any]:
    """Writes the activation under both of its names."""
    fields = {**write_llama(m), "hidden_activation": "gelu_pytorch_tanh"}
    return {**fields, "hidden_act": "gelu_pytorch_tanh"}


def write_gemma2(m: Architecture) -> dict[str, Any]:
    """Writes caps and windows; the scale as the size of head that it is due to."""
    fields = {**write_gemma(m), **layer_types(m), "sliding_window": m.window}
    scale = m.attention_scale or m.head_dim**-0.5
    return {
        **fields,
        "attn_logit_softcapping": m.attention_softcap,
        "final_logit_softcapping": m.logit_softcap,
        "query_pre_attn_scalar": round(scale**-2),
    }


def write_gemma3(m: Architecture) -> dict[str, Any]:
    """Writes rotation for either kind of layer."""
    fields = write_gemma2(m)
    local = {"rope_type": "default", "rope_theta": m.window_rope_base or m.rope_base}
    ropes = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    return {
        **{k: v for k, v in fields.items() if k not in ("rope_theta", "rope_scaling")},
        "rope_parameters": ropes,
    }
