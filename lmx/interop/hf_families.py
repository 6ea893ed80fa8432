"""Model families of Hugging Face: how each `config.json` is read and written.

A family is a pair of functions, the names of its tensors, and the defaults that
transformers has for missing fields. Files are not opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmx.core.errors import pick
from lmx.core.schema import Architecture
from lmx.interop.hf_fields import Fields
from lmx.interop.names import BERT, GEMMA2, GPT2, LLAMA, OLMO2, Row


class Family(NamedTuple):
    """How one `model_type` is read and written.

    Attributes:
      architecture: the class of transformers that holds it.
      rows: names of its tensors.
      read: fields → options that differ from the defaults.
      write: model → fields.
      defaults: what transformers takes for fields that are not there at all, where it
        differs from Llama's.
    """

    architecture: str
    rows: Sequence[Row]
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[Architecture], dict[str, Any]]
    defaults: Mapping[str, Any] = {}


def _read_llama(f: Fields, *, windows: bool = False) -> dict[str, Any]:
    f.only("hidden_act", "silu", "swish")
    return _read_decoder(f, windows=windows)


def _read_decoder(f: Fields, *, windows: bool) -> dict[str, Any]:
    """Reads the fields that all families but GPT-2 share."""
    pattern = _read_windows(f)
    if pattern["window"] is not None and not windows:
        raise f.refusal("layer_types", pattern["pattern"], "this family has no windows")
    for name in ("attention_bias", "mlp_bias"):
        f.only(name, False)
    f.only("pretraining_tp", *range(1, 65))  # how it was trained, not what it computes
    width, heads = f.number("hidden_size"), f.number("num_attention_heads")
    length = f.number("max_position_embeddings", 2048)
    return {
        "vocab_size": f.number("vocab_size"),
        "context_length": length,
        "width": width,
        "num_layers": f.number("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": f.number("num_key_value_heads", heads),
        "head_dim": f.number("head_dim", max(1, width // heads)),
        "mlp_dim": f.number("intermediate_size"),
        "norm_epsilon": f.real("rms_norm_eps", 1e-6),
        "init_scale": f.real("initializer_range", 0.02),
        "head": "tied" if f.take("tie_word_embeddings", False) else "untied",
        **_read_rope(f, length),
        **pattern,
    }


def _read_rope(f: Fields, length: int) -> dict[str, Any]:
    """Returns base and scaling; new files have both in `rope_parameters`."""
    base = f.real("rope_theta", 10_000.0)
    rope = {"rope_theta": base, **f.table("rope_scaling"), **f.table("rope_parameters")}
    if "type" in rope:  # the older name
        rope.setdefault("rope_type", rope["type"])
        del rope["type"]
    inner = Fields(rope, f.where, "rope_parameters.")
    kind = inner.take("rope_type", "default")
    options: dict[str, Any] = {"rope_base": inner.real("rope_theta")}
    if kind in ("linear", "llama3"):
        options |= {"rope_scaling": kind, "rope_factor": inner.real("factor")}
    elif kind != "default":
        raise inner.refusal("rope_type", kind, "lmx can express 'linear' and 'llama3'")
    if kind == "llama3":
        own = inner.number("original_max_position_embeddings", length)
        options["rope_original_length"] = own
        inner.only("low_freq_factor", 1.0)
        inner.only("high_freq_factor", 4.0)
    inner.finish()
    return options


def _read_windows(f: Fields) -> dict[str, Any]:
    """Returns the layer pattern: one kind for all, or one for each layer."""
    kinds = f.each_layer("layer_types", str)
    window = f.number("sliding_window") if f.look("sliding_window", None) else None
    if kinds is None and window is not None:
        raise f.refusal("sliding_window", window, "no layer_types say where it is")
    names = {"full_attention": "attention", "sliding_attention": "window"}
    found = [pick(names, kind, "layer_types") for kind in kinds or ["full_attention"]]
    pattern = _shortest_period(tuple(found))
    return {"pattern": pattern, "window": window if "window" in pattern else None}


def _shortest_period(pattern: tuple[str, ...]) -> tuple[str, ...]:
    for n in range(1, len(pattern)):
        if all(kind == pattern[i % n] for i, kind in enumerate(pattern)):
            return pattern[:n]
    return pattern


def _read_mistral(f: Fields) -> dict[str, Any]:
    """Mistral's window is on every layer; newer files have none."""
    if f.look("sliding_window", None) is not None:
        f.put("layer_types", ["sliding_attention"] * f.layers())
    return _read_llama(f, windows=True)


def _read_qwen(f: Fields) -> dict[str, Any]:
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
    return _read_llama(f, windows=True)


def _read_qwen2(f: Fields) -> dict[str, Any]:
    """Biases on queries, keys and values."""
    return {**_read_qwen(f), "biases": "qkv"}


def _read_qwen3(f: Fields) -> dict[str, Any]:
    """RMSNorm of queries and keys per head, no biases."""
    return {**_read_qwen(f), "qk_norm": "rmsnorm"}


def _read_olmo2(f: Fields) -> dict[str, Any]:
    """Norms on what sublayers give, and on queries and keys over all heads."""
    own = {"norm_position": "output", "qk_norm": "rmsnorm_all_heads"}
    return {**_read_llama(f), **own}


def _read_smollm3(f: Fields) -> dict[str, Any]:
    """Every so many layers rotate nothing; `no_rope_layers` has 0 for those."""
    every = f.number("no_rope_layer_interval", 4)
    rotates = f.each_layer("no_rope_layers", int)
    f.take("max_window_layers")
    if not f.take("use_sliding_window", False):
        f.take("sliding_window")
    options = _read_llama(f)
    if rotates is None:
        rotates = [int((i + 1) % every != 0) for i in range(options["num_layers"])]
    names = tuple("attention" if rotate else "nope" for rotate in rotates)
    return {**options, "pattern": _shortest_period(names)}


def _read_gemma(f: Fields, *, windows: bool = False) -> dict[str, Any]:
    """Scaled embeddings, norms of 1 + weight, a GELU gate."""
    for name in ("hidden_act", "hidden_activation"):
        f.only(name, "gelu_pytorch_tanh")
    f.only("use_bidirectional_attention", False)
    tied = f.take("tie_word_embeddings", True)
    options = _read_decoder(f, windows=windows)
    return {
        **options,
        "head": "tied" if tied else "untied",
        "mlp": "gelu_gated",
        "norm": "rmsnorm_plus_one",
        "embedding_scale": options["width"] ** 0.5,
    }


def _windows_but_every(f: Fields, every: int) -> None:
    """Sets the window on all but every so many layers, as older files mean it."""
    if f.look("layer_types", None) is None:
        names = ("full_attention", "sliding_attention")
        kinds = [names[(i + 1) % every != 0] for i in range(f.layers())]
        f.put("layer_types", kinds)


def _read_gemma2(f: Fields) -> dict[str, Any]:
    """Norms before and after each sublayer, soft caps, a scale of its own."""
    _windows_but_every(f, 2)
    own = {
        "norm_position": "both",
        "attention_softcap": f.cap("attn_logit_softcapping"),
        "logit_softcap": f.cap("final_logit_softcapping"),
        "attention_scale": f.real("query_pre_attn_scalar", 256) ** -0.5,
    }
    return {**_read_gemma(f, windows=True), **own}


def _read_gemma3(f: Fields) -> dict[str, Any]:
    """Norms of queries and keys, and another rotary base in layers with a window."""
    name = "_sliding_window_pattern"
    every = f.number("sliding_window_pattern", f.number(name, 6))
    _windows_but_every(f, every)
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
    return {**_read_gemma2(f), **own}


def _read_gpt2(f: Fields) -> dict[str, Any]:
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


BERT_GELUS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}


def _read_bert(f: Fields) -> dict[str, Any]:
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


def _write_bert(m: Architecture) -> dict[str, Any]:
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


def _write_llama(m: Architecture) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": m.rope_base}
    if m.rope_scaling is not None:
        rope |= {"rope_type": m.rope_scaling, "factor": m.rope_factor}
    if m.rope_scaling == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = m.rope_original_length
    # Readers of transformers 4 know the two older fields, those of 5 the new one.
    theta = rope["rope_theta"]
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    return {
        "vocab_size": m.vocab_size,
        "max_position_embeddings": m.context_length,
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
        "rope_theta": theta,
        "rope_scaling": None if m.rope_scaling is None else scaling,
        "rope_parameters": rope,
    }


def _write_mistral(m: Architecture) -> dict[str, Any]:
    return {**_write_llama(m), "sliding_window": m.window}


def _write_qwen(m: Architecture) -> dict[str, Any]:
    return {
        **_write_llama(m),
        **_layer_types(m),
        "sliding_window": m.window,
        "use_sliding_window": m.window is not None,
    }


def _layer_types(m: Architecture) -> dict[str, list[str]]:
    # Whatever is no window is written as full; the reader sees if that is not so.
    names = {"window": "sliding_attention"}
    kinds = [m.pattern[i % len(m.pattern)] for i in range(m.num_layers)]
    return {"layer_types": [names.get(kind, "full_attention") for kind in kinds]}


def _write_smollm3(m: Architecture) -> dict[str, Any]:
    kinds = [m.pattern[i % len(m.pattern)] for i in range(m.num_layers)]
    return {
        **_write_llama(m),
        "no_rope_layers": [int(kind != "nope") for kind in kinds],
        "use_sliding_window": False,
    }


def _write_gemma(m: Architecture) -> dict[str, Any]:
    fields = {**_write_llama(m), "hidden_activation": "gelu_pytorch_tanh"}
    return {**fields, "hidden_act": "gelu_pytorch_tanh"}


def _write_gemma2(m: Architecture) -> dict[str, Any]:
    fields = {**_write_gemma(m), **_layer_types(m), "sliding_window": m.window}
    scale = m.attention_scale or m.head_dim**-0.5
    return {
        **fields,
        "attn_logit_softcapping": m.attention_softcap,
        "final_logit_softcapping": m.logit_softcap,
        "query_pre_attn_scalar": round(scale**-2),
    }


def _write_gemma3(m: Architecture) -> dict[str, Any]:
    fields = _write_gemma2(m)
    local = {"rope_type": "default", "rope_theta": m.window_rope_base or m.rope_base}
    ropes = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    return {
        **{k: v for k, v in fields.items() if k not in ("rope_theta", "rope_scaling")},
        "rope_parameters": ropes,
    }


def _write_gpt2(m: Architecture) -> dict[str, Any]:
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


# In the order in which an export tries them.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", GPT2, _read_gpt2, _write_gpt2),
    "llama": Family("LlamaForCausalLM", LLAMA, _read_llama, _write_llama),
    "mistral": Family(
        "MistralForCausalLM",
        LLAMA,
        _read_mistral,
        _write_mistral,
        {"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", LLAMA, _read_qwen2, _write_qwen, {"num_key_value_heads": 32}
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        LLAMA,
        _read_qwen3,
        _write_qwen,
        {"num_key_value_heads": 32, "head_dim": 128},
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM", OLMO2, _read_olmo2, _write_llama, {"rms_norm_eps": 1e-5}
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        LLAMA,
        _read_smollm3,
        _write_smollm3,
        {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        LLAMA,
        _read_gemma,
        _write_gemma,
        {"num_key_value_heads": 16, "head_dim": 256},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        GEMMA2,
        _read_gemma2,
        _write_gemma2,
        {
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        GEMMA2,
        _read_gemma3,
        _write_gemma3,
        {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    ),
    "bert": Family("BertModel", BERT, _read_bert, _write_bert),
}
