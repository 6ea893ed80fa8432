"""How the families that descend from Llama are read and written.

A reader turns fields of a `config.json` into options that differ from the defaults, a
writer a model into fields. What a writer cannot say, reading back shows.
"""

from __future__ import annotations

from typing import Any

from lmx.core.errors import pick
from lmx.core.model_schema import Architecture
from lmx.interop.hf_fields import Fields
from lmx.interop.hf_rope import read_rope, write_rope

# (attention_bias, mlp_bias) of what `biases` can be.
BIASES = {(False, False): "none", (True, False): "attention", (True, True): "all"}


def read_llama(f: Fields, **more: Any) -> dict[str, Any]:
    """Reads a decoder with SwiGLU; `more` is that of `read_decoder`."""
    f.only("hidden_act", "silu", "swish")
    return read_decoder(f, **more)


def read_decoder(
    f: Fields,
    *,
    windows: bool = False,
    biases: bool = True,
    partial: float | None = None,
) -> dict[str, Any]:
    """Reads the fields that most decoders share.

    `windows`, `biases` and `partial` rotation are what a family can have.
    """
    pattern = _read_windows(f)
    if pattern["window"] is not None and not windows:
        raise f.refusal("layer_types", pattern["pattern"], "this family has no windows")
    added = tuple(f.flag(name) for name in ("attention_bias", "mlp_bias"))
    if added not in BIASES or (any(added) and not biases):
        name = "attention_bias" if added[0] else "mlp_bias"
        raise f.refusal(name, True, "biases are not here alone, or not in this family")
    f.only("pretraining_tp", *range(1, 65))  # how it was trained, not what it computes
    width, heads = f.number("hidden_size"), f.number("num_attention_heads")
    length = f.number("max_position_embeddings", 2048)
    head_dim = f.number("head_dim", max(1, width // heads))
    return {
        "vocab_size": f.number("vocab_size"),
        "width": width,
        "num_layers": f.number("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": f.number("num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_dim": f.number("intermediate_size"),
        "norm_epsilon": f.real("rms_norm_eps", 1e-6),
        "init_scale": f.real("initializer_range", 0.02),
        "head": "tied" if f.take("tie_word_embeddings", False) else "untied",
        "biases": BIASES[added],
        **read_rope(f, length=length, head_dim=head_dim, partial=partial),
        **pattern,
    }


def _read_windows(f: Fields) -> dict[str, Any]:
    """Returns the layer pattern: one kind for all, or one for each layer."""
    kinds = f.each_layer("layer_types", str)
    window = f.number("sliding_window") if f.look("sliding_window", None) else None
    if kinds is None and window is not None:
        raise f.refusal("sliding_window", window, "no layer_types say where it is")
    names = {"full_attention": "attention", "sliding_attention": "window"}
    found = [pick(names, kind, "layer_types") for kind in kinds or ["full_attention"]]
    pattern = shortest_period(tuple(found))
    return {"pattern": pattern, "window": window if "window" in pattern else None}


def shortest_period(pattern: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the shortest tuple that the pattern repeats."""
    for n in range(1, len(pattern)):
        if all(kind == pattern[i % n] for i, kind in enumerate(pattern)):
            return pattern[:n]
    return pattern


def windows_everywhere(f: Fields) -> None:
    """Sets the window on every layer if there is one; newer files have none."""
    if f.look("sliding_window", None) is not None:
        f.put("layer_types", ["sliding_attention"] * f.layers())


def read_mistral(f: Fields) -> dict[str, Any]:
    """Mistral's window is on every layer."""
    windows_everywhere(f)
    return read_llama(f, windows=True, biases=False)


def read_phi3(f: Fields) -> dict[str, Any]:
    """Partly rotated heads, and windows as Mistral's."""
    windows_everywhere(f)
    rope = f.table("rope_parameters") or f.table("rope_scaling")
    for name in ("type", "rope_type"):
        if rope.get(name) in ("su", "yarn"):  # its names before LongRoPE had one
            rope[name] = "longrope"
    f.put("rope_parameters", rope)
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        f.take("original_max_position_embeddings")
    return read_llama(f, windows=True, biases=False, partial=1.0)


def read_qwen(f: Fields, *, biases: bool = True) -> dict[str, Any]:
    """Reads Llama's fields, with windows only if the file says so, in late layers."""
    layers, first = f.layers(), f.take("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise f.refusal("max_window_layers", first, "a whole number is due")
    if not f.take("use_sliding_window", False):
        f.take("sliding_window")
    elif f.look("layer_types", None) is None:
        full = min(first, layers)
        kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
        f.put("layer_types", kinds)
    return read_llama(f, windows=True, biases=biases)


def read_qwen2(f: Fields) -> dict[str, Any]:
    """Biases on queries, keys and values.

    Long ones were made for attention in chunks, which is the usual one inside a chunk:
    that is the context here.
    """
    options = {**read_qwen(f, biases=False), "biases": "qkv"}
    chunks = f.table("dual_chunk_attention_config")
    if chunks:
        inner = Fields(chunks, f.where, "dual_chunk_attention_config.")
        usual = inner.number("chunk_size") - inner.number("local_size")
        options["context_length"] = min(options["context_length"], usual)
    return options


def read_qwen3(f: Fields) -> dict[str, Any]:
    """RMSNorm of queries and keys per head, no biases."""
    return {**read_qwen(f), "qk_norm": "rmsnorm"}


def read_olmo2(f: Fields) -> dict[str, Any]:
    """Norms on what sublayers give, and on queries and keys over all heads."""
    own = {"norm_position": "output", "qk_norm": "rmsnorm_all_heads"}
    return {**read_llama(f), **own}


def read_smollm3(f: Fields) -> dict[str, Any]:
    """Every so many layers rotate nothing; `no_rope_layers` has 0 for those."""
    every = f.number("no_rope_layer_interval", 4)
    rotates = f.each_layer("no_rope_layers", int)
    f.take("max_window_layers")
    if not f.take("use_sliding_window", False):
        f.take("sliding_window")
    options = read_llama(f)
    if rotates is None:
        rotates = [int((i + 1) % every != 0) for i in range(options["num_layers"])]
    names = tuple("attention" if rotate else "nope" for rotate in rotates)
    return {**options, "pattern": shortest_period(names)}


def write_llama(m: Architecture, *, partial: bool = False) -> dict[str, Any]:
    """Writes the fields that `read_decoder` reads, but windows."""
    return {
        "vocab_size": m.vocab_size,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_heads,
        "num_key_value_heads": m.num_kv_heads,
        "head_dim": m.head_dim,
        "intermediate_size": m.mlp_dim,
        "rms_norm_eps": m.norm_epsilon,
        "initializer_range": m.init_scale,
        "tie_word_embeddings": m.head == "tied",
        "hidden_act": "silu",
        "attention_bias": m.biases in ("attention", "all"),
        "mlp_bias": m.biases == "all",
        **write_rope(m, partial=partial),
    }


def write_without_biases(m: Architecture) -> dict[str, Any]:
    """Writes Llama's fields for a family whose biases are not an option."""
    fields = write_llama(m)
    return {k: v for k, v in fields.items() if k not in ("attention_bias", "mlp_bias")}


def write_mistral(m: Architecture) -> dict[str, Any]:
    """Writes the window of every layer."""
    return {**write_without_biases(m), "sliding_window": m.window}


def write_phi3(m: Architecture) -> dict[str, Any]:
    """Writes the part that rotates, and the length before LongRoPE outside of it."""
    fields = {**write_llama(m, partial=True), "sliding_window": m.window}
    if m.rope_scaling == "longrope":
        fields["original_max_position_embeddings"] = m.rope_original_length
    return {k: v for k, v in fields.items() if k not in ("attention_bias", "mlp_bias")}


def write_qwen(m: Architecture) -> dict[str, Any]:
    """Writes Llama's fields and the kind of each layer."""
    return {
        **write_llama(m),
        **layer_types(m),
        "sliding_window": m.window,
        "use_sliding_window": m.window is not None,
    }


def write_qwen2(m: Architecture) -> dict[str, Any]:
    """Writes Qwen's fields; its biases are not an option."""
    return {k: v for k, v in write_qwen(m).items() if not k.endswith("_bias")}


def layer_types(m: Architecture) -> dict[str, list[str]]:
    """Returns the field that says which layers have windows."""
    # Whatever is no window is written as full; the reader sees if that is not so.
    names = {"window": "sliding_attention"}
    kinds = [m.pattern[i % len(m.pattern)] for i in range(m.num_layers)]
    return {"layer_types": [names.get(kind, "full_attention") for kind in kinds]}


def write_smollm3(m: Architecture) -> dict[str, Any]:
    """Writes which layers rotate."""
    kinds = [m.pattern[i % len(m.pattern)] for i in range(m.num_layers)]
    return {
        **write_llama(m),
        "no_rope_layers": [int(kind != "nope") for kind in kinds],
        "use_sliding_window": False,
    }
