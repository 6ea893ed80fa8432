"""The proof of a conversion: how far what was made is from what it was made of.

Weights are turned back and compared tensor by tensor. Where transformers is installed
its outputs on the same tokens are the reference as well. Nothing of the model is
executed: no remote code.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

import jax
import numpy as np

from lmx.core.model_schema import Architecture
from lmx.interop.pretrained import Pretrained
from lmx.interop.weights import Watch, published, row_chunks, unwatched
from lmx.models.decoder import Decoder, head_logits
from lmx.models.moe import dropless
from lmx.models.sizes import parameter_count

TOKENS = 64  # outputs that are compared of a text
LARGEST_SCORES = 2e9  # bytes of attention scores, or thousands of FLOPs, of a text
LARGEST_REFERENCE = 1e9  # bytes in float32 that torch may take beside our own
CAUSAL = "AutoModelForCausalLM"
TOLERANCE = 1e-4  # in float32, for outputs of about 1; larger ones in proportion
# What one conversion to a dtype rounds by: of the largest value, and of the least.
ROUNDING = {
    "float32": (0.0, 0.0),
    "bfloat16": (2.0**-8, 0.0),
    "float16": (2.0**-10, 2.0**-24),
    # Steps of 1/127 of the largest of 32 values, which is kept as a float16.
    "int8": (0.5 / 127 + 2.0**-10, 127 * 2.0**-24),
}


def parity(
    pretrained: Pretrained,
    params: Any,
    model: Architecture,
    *,
    dtype: str | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Returns what `parity.json` holds; `ok` says whether all is within tolerance.

    `params` are those that were made of `pretrained`, of architecture `model`, or that
    it was made of; `dtype` is what they were rounded to, by default `param_dtype`.
    `watch` is told how far it is.
    """
    dtype = dtype or model.param_dtype
    outputs = "hidden_states" if model.attention == "bidirectional" else "logits"
    found: dict[str, Any] = {
        "weights": weight_parity(pretrained, params, model, dtype=dtype, watch=watch),
        "unused": _unused(pretrained),
        "logits": None,
        "hidden_states": None,
    }
    why = _unmeasured(pretrained, model, dtype)
    if why is None:
        watch(f"proving: {outputs.replace('_', ' ')} of transformers", 0, 0)
        found[outputs] = output_parity(pretrained, params, model)
    else:
        found["note"] = f"no {outputs} are compared: {why}"
    parts = [found["weights"], found[outputs] or {"ok": True}]
    return {**found, "ok": all(part["ok"] for part in parts)}


def _unused(pretrained: Pretrained) -> dict[str, str]:
    """Returns the tensors that lmx has no layer for, and why."""
    return {
        name: why
        for name in sorted(pretrained.source.names())
        for pattern, why in pretrained.unused.items()
        if re.search(pattern, name)
    }


def _unmeasured(pretrained: Pretrained, model: Architecture, dtype: str) -> str | None:
    """Returns why outputs are not compared with a reference, None if they are."""
    size = 4 * parameter_count(model)
    if not pretrained.where.is_dir():
        return "there is no reference for this format"
    if not has_reference():
        return "torch and transformers are not installed"
    if pretrained.packing == "fp8":
        return "transformers unpacks FP8 with accelerate only, and no partial blocks"
    if dtype != "float32":
        return f"the weights are {dtype}"
    if size > LARGEST_REFERENCE:
        return (
            f"in float32 the model has {size / 1e9:.1f} GB and the reference needs a "
            f"copy; up to {LARGEST_REFERENCE / 1e9:.0f} GB they are"
        )
    return None


def has_reference() -> bool:
    """Returns whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def weight_parity(
    pretrained: Pretrained,
    params: Any,
    model: Architecture,
    *,
    dtype: str,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Compares each tensor with the one that its parameters give when turned back.

    They may differ by one rounding to `dtype`. Of tensors past it the worst is named.
    """
    worst = wrong = 0.0
    where, count = "", 0
    relative, absolute = ROUNDING[dtype]
    tensors = published(model, pretrained.rows, params, what="proving", watch=watch)
    for name, shape, make in tensors:
        whole, difference, largest = make(), 0.0, 0.0
        for rows in row_chunks(shape):
            theirs = np.asarray(pretrained.source.read(name, rows), np.float32)
            ours = np.asarray(whole[rows], np.float32)
            difference = np.maximum(difference, np.abs(ours - theirs).max(initial=0.0))
            largest = max(largest, float(np.abs(theirs).max(initial=0.0)))
        fine = difference <= relative * largest + absolute
        if not fine and not difference <= wrong:  # of what is no number, both are false
            wrong, where = float(difference), name
        worst = float(np.maximum(worst, difference))
        count += 1
    weights = {"tensors": count, "max_abs_difference": worst, "ok": not where}
    return {**weights, **({"tensor": where} if where else {})}


def output_parity(
    pretrained: Pretrained, params: Any, model: Architecture
) -> dict[str, Any]:
    """Compares outputs with those of transformers on the same pseudo-random tokens.

    Those of an encoder are its final hidden states, of other models logits.
    """
    import torch

    # Both in float32, whatever the model was trained in.
    wide: Any = dict.fromkeys(
        ("compute_dtype", "residual_dtype", "softmax_dtype"), "float32"
    )
    model = dataclasses.replace(dropless(model), **wide)
    reads = model.attention == "bidirectional"
    reference, version = _reference(pretrained, "AutoModel" if reads else CAUSAL)

    def theirs(tokens_BL: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            if reads:
                out = reference(torch.tensor(tokens_BL)).last_hidden_state
            else:
                kept = {"logits_to_keep": TOKENS}
                out = reference(torch.tensor(tokens_BL), **kept).logits
        return out[0, -TOKENS:].double().numpy()

    @jax.jit
    def ours(params, tokens_BL):
        hidden: Any = Decoder(model).apply({"params": params}, tokens_BL)
        last = hidden[:, -TOKENS:]
        return last if reads else head_logits(model, params, last)

    difference, largest, divergences = 0.0, 1.0, []
    found: dict[str, Any] = {"reference": version, **_coverage(model)}
    for length in found["tokens"]:
        tokens_BL = np.random.default_rng(0).integers(0, model.vocab_size, (1, length))
        p_LX, q_LX = theirs(tokens_BL), np.asarray(ours(params, tokens_BL), float)[0]
        difference = np.maximum(difference, np.abs(p_LX - q_LX).max())
        largest = max(largest, float(np.abs(p_LX).max()))
        if not reads:
            p_LX, q_LX = _log_softmax(p_LX), _log_softmax(q_LX)
            divergences.append((np.exp(p_LX) * (p_LX - q_LX)).sum(axis=-1).mean())
    if divergences:
        found["kl_divergence"] = float(max(divergences))
    tolerance = TOLERANCE * largest
    found |= {"max_abs_difference": float(difference), "tolerance": tolerance}
    return {**found, "ok": bool(difference <= tolerance)}


def _coverage(model: Architecture) -> dict[str, Any]:
    """Returns the lengths that outputs are compared at, and what the longest is past.

    Of each the last outputs are compared, such as no longer see the first token through
    a window, or stand beyond the context that rotary scaling starts from.
    """
    bounds = {
        "window": model.window if "window" in model.pattern else None,
        "original_context": model.rope_original_length if model.rope_scaling else None,
    }
    reach = {name: bound for name, bound in bounds.items() if bound is not None}
    lengths = [min(TOKENS, model.context_length)]
    for bound in sorted(reach.values()):
        length = bound + TOKENS
        scores = 4 * model.num_heads * length**2  # bytes of one layer
        work = 2 * parameter_count(model) * length
        fits = length <= model.context_length
        if length > lengths[-1] and fits and max(scores, work / 1000) <= LARGEST_SCORES:
            lengths.append(length)
    past = {name: lengths[-1] > bound for name, bound in reach.items()}
    return {"tokens": lengths, **({"past": past} if past else {})}


def _reference(pretrained: Pretrained, kind: str) -> tuple[Any, str]:
    """Returns the model of transformers, in float32, and its version."""
    import torch
    import transformers

    logs = transformers.utils.logging
    logs.disable_progress_bar()
    verbosity = logs.get_verbosity()
    logs.set_verbosity_error()  # that an encoder comes without a pooler is no news
    load = getattr(transformers, kind).from_pretrained
    more = {}
    if pretrained.packing == "mxfp4":  # which it would else compute with, on a GPU
        # By name: without torch, as where types are checked, it has no such class.
        config = getattr(transformers, "Mxfp4Config")  # noqa: B009
        more["quantization_config"] = config(dequantize=True)
    try:
        model = load(
            pretrained.where,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **more,
        )
    finally:
        logs.set_verbosity(verbosity)
    return model.eval(), f"transformers {transformers.__version__}"


def _log_softmax(logits_LV: np.ndarray) -> np.ndarray:
    shifted = logits_LV - logits_LV.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
