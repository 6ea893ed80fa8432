"""The proof of a conversion: how far what was made is from what it was made of.

Weights are turned back and compared tensor by tensor. Where transformers is installed
its logits on the same tokens are the reference as well. Nothing of the model is
executed: no remote code.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.schema import Architecture
from lmx.interop.pretrained import Pretrained
from lmx.interop.weights import published
from lmx.models.decoder import Decoder, head_logits

TOKENS = 64  # of the text that logits are compared on
LOGIT_TOLERANCE = 1e-4  # in float32, for logits of about 1; larger ones in proportion
# Relative rounding of one conversion to a dtype.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def parity(pretrained: Pretrained, params: Any, model: Architecture) -> dict[str, Any]:
    """Returns what `parity.json` holds; `ok` says whether all is within tolerance.

    `params` are those that were made of `pretrained`, of architecture `model`.
    """
    found = weight_parity(pretrained, params, model)
    exact = model.param_dtype == "float32"
    if exact and pretrained.where.is_dir() and has_reference():
        found["logits"] = logit_parity(pretrained.where, params, model)
    else:
        found["logits"] = None
        found["note"] = "compared with the source's own tensors; no reference logits"
    parts = [found["weights"], found["logits"] or {"ok": True}]
    return {**found, "ok": all(part["ok"] for part in parts)}


def has_reference() -> bool:
    """Returns whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def weight_parity(pretrained: Pretrained, params: Any, model: Architecture) -> dict:
    """Compares each tensor with the one that its parameters give when turned back."""
    worst, where, count = 0.0, "", 0
    rounding = ROUNDING[model.param_dtype]
    for name, _, make in published(model, pretrained.rows, params):
        theirs = np.asarray(pretrained.source.read(name), np.float32)
        ours = np.asarray(make(), np.float32)
        difference = float(np.abs(ours - theirs).max(initial=0.0))
        limit = rounding * float(np.abs(theirs).max(initial=0.0))
        if not difference <= limit and not difference <= worst:
            worst, where = difference, name
        count += 1
    weights = {"tensors": count, "max_abs_difference": worst, "ok": not where}
    return {"weights": {**weights, **({"tensor": where} if where else {})}}


def logit_parity(folder: Path, params: Any, model: Architecture) -> dict[str, Any]:
    """Compares logits with those of transformers on the same pseudo-random tokens."""
    import jax
    import torch
    import transformers

    # Both in float32, whatever the model was trained in.
    wide: Any = dict.fromkeys(
        ("compute_dtype", "residual_dtype", "softmax_dtype"), "float32"
    )
    model = dataclasses.replace(model, **wide)
    transformers.utils.logging.disable_progress_bar()
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()
    length = min(TOKENS, model.context_length)
    tokens_BL = np.random.default_rng(0).integers(0, model.vocab_size, (1, length))
    with torch.no_grad():
        theirs_LV = reference(torch.tensor(tokens_BL)).logits[0].double().numpy()

    @jax.jit
    def score(params, tokens_BL):
        hidden: Any = Decoder(model).apply({"params": params}, tokens_BL)
        return head_logits(model, params, hidden)

    ours_LV = np.asarray(score(params, tokens_BL), np.float64)[0]
    difference = float(np.abs(ours_LV - theirs_LV).max())
    tolerance = LOGIT_TOLERANCE * max(1.0, float(np.abs(theirs_LV).max()))
    p, q = _log_softmax(theirs_LV), _log_softmax(ours_LV)
    return {
        "reference": f"transformers {transformers.__version__}",
        "tokens": length,
        "max_abs_difference": difference,
        "kl_divergence": float((np.exp(p) * (p - q)).sum(axis=-1).mean()),
        "tolerance": tolerance,
        "ok": difference <= tolerance,
    }


def _log_softmax(logits_LV: np.ndarray) -> np.ndarray:
    shifted = logits_LV - logits_LV.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
