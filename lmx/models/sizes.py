"""From a parameter budget to a shape, and from a shape to a parameter count.

Pure arithmetic: it needs no JAX, so `lmx config show` can print a shape at once.
"""

from __future__ import annotations

import dataclasses
import math
import re

from lmx.core.errors import UserError
from lmx.core.schema import ModelConfig

# Finer where models are small; heads of 64 stay a power of two times a small number.
WIDTHS = (
    *range(32, 256, 32),
    *range(256, 1024, 64),
    *range(1024, 4096, 128),
    *range(4096, 32768, 512),
)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def parse_size(text: str) -> int:
    """Returns the number of parameters that '10m', '124M' or '1.5b' stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt])", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise UserError(
            f"model.size={text!r} is not a parameter count; write it like '10m' or '1.5b'"
        )
    return round(float(match[1]) * UNITS[match[2]])


def resolve(config: ModelConfig, vocab_size: int | None = None) -> ModelConfig:
    """Returns `config` with every derived number filled in, or raises a `UserError`.

    `vocab_size` is the tokenizer's, taken where the config names none. Given `size`,
    the shape with the nearest parameter count is chosen among those whose width is
    about 64 · num_layers and whose heads are 64 wide (32 below width 256).
    """
    c = config
    if c.vocab_size is None:
        c = dataclasses.replace(c, vocab_size=vocab_size)
    if c.size is not None and None in (c.width, c.num_layers, c.num_heads):
        c = _fit(c, parse_size(c.size))
    missing = [n for n in ("width", "num_layers", "num_heads") if getattr(c, n) is None]
    if missing:
        raise UserError(
            f"model.{missing[0]} is not set; set it, or let model.size='10m' derive it"
        )
    c = _fill(c)
    _check(c)
    return c


def _fill(c: ModelConfig) -> ModelConfig:
    """Returns `c` with head and MLP sizes derived from width and heads."""
    gated = c.mlp.endswith("_gated")
    wide = 64 * math.ceil(c.width * 8 / 3 / 64) if gated else 4 * c.width
    return dataclasses.replace(
        c,
        num_kv_heads=c.num_kv_heads or c.num_heads,
        head_dim=c.head_dim or max(1, c.width // max(1, c.num_heads)),
        mlp_dim=c.mlp_dim or wide,
    )


def _fit(c: ModelConfig, budget: int) -> ModelConfig:
    """Returns `c` with the width, depth and heads that come nearest to `budget`."""
    best, best_cost = c, math.inf
    for width in WIDTHS:
        if c.width not in (None, width):
            continue
        ideal = max(1.0, width / 64)
        for depth in range(max(1, round(ideal / 1.6)), round(ideal * 1.6) + 2):
            if c.num_layers not in (None, depth):
                continue
            heads = c.num_heads or width // (c.head_dim or (64 if width >= 256 else 32))
            shape = dataclasses.replace(
                c, width=width, num_layers=depth, num_heads=max(1, heads)
            )
            miss = abs(math.log(parameter_count(_fill(shape)) / budget))
            cost = miss + 0.05 * abs(math.log(depth / ideal))
            if cost < best_cost:
                best, best_cost = shape, cost
    return best


def parameter_count(c: ModelConfig) -> int:
    """Returns the number of parameters of a filled-in config, in closed form."""
    linear_bias, qkv_bias = c.biases == "all", c.biases in ("qkv", "all")
    norm = c.width * (2 if c.norm == "layernorm" and linear_bias else 1)
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = c.width * (2 * heads + 2 * kv_heads)
    attention += (heads + 2 * kv_heads) * qkv_bias + c.width * linear_bias
    if c.qk_norm:
        attention += 2 * c.head_dim * (
            2 if c.qk_norm == "layernorm" and linear_bias else 1
        )
    ups = 2 if c.mlp.endswith("_gated") else 1
    mlp = (ups + 1) * c.width * c.mlp_dim + (ups * c.mlp_dim + c.width) * linear_bias
    tables = (c.vocab_size or 0) * c.width * (1 if c.head == "tied" else 2)
    tables += c.context_length * c.width if c.positions == "learned" else 0
    final = norm if c.norm_position == "pre" else 0
    return tables + c.num_layers * (attention + mlp + 2 * norm) + final


def _check(c: ModelConfig) -> None:
    """Raises a `UserError` for a shape that no model can have."""
    for name in ("width", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
        if getattr(c, name) < 1:
            raise UserError(f"model.{name}={getattr(c, name)} must be at least 1")
    for name in ("mlp_dim", "context_length"):
        if getattr(c, name) < 1:
            raise UserError(f"model.{name}={getattr(c, name)} must be at least 1")
    if c.vocab_size is not None and c.vocab_size < 1:
        raise UserError(f"model.vocab_size={c.vocab_size} must be at least 1")
    if c.head_dim * c.num_heads != c.width and c.width % c.num_heads:
        near = [n for n in range(1, c.width + 1) if c.width % n == 0]
        near = min(near, key=lambda n: abs(n - c.num_heads))
        raise UserError(
            f"model.num_heads={c.num_heads} does not divide model.width={c.width}; "
            f"nearest that does: {near}, or set model.head_dim"
        )
    if c.num_heads % c.num_kv_heads:
        raise UserError(
            f"model.num_kv_heads={c.num_kv_heads} does not divide "
            f"model.num_heads={c.num_heads}"
        )
    if c.positions == "rope" and c.head_dim % 2:
        raise UserError(
            f"model.head_dim={c.head_dim} must be even for model.positions='rope'"
        )
    if not c.pattern:
        raise UserError("model.pattern=() names no mixer; write ('attention',)")
    if "window" in c.pattern and (c.window is None or c.window < 1):
        raise UserError(
            f"model.window={c.window} must be at least 1: model.pattern has 'window'"
        )


def flops_per_token(c: ModelConfig) -> float:
    """Returns the FLOPs of one training step per token, as MFU counts them.

    6 per parameter that multiplies, and 12 · layers · heads · head size · context for
    attention without the saving of causality (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B). A window shortens the context of its layers.
    """
    tables = (c.vocab_size or 0) * c.width * (0 if c.head == "tied" else 1)
    tables += c.context_length * c.width if c.positions == "learned" else 0
    seen = [
        min(c.context_length, c.window or c.context_length)
        if c.pattern[i % len(c.pattern)] == "window"
        else c.context_length
        for i in range(c.num_layers)
    ]
    return 6 * (parameter_count(c) - tables) + 12 * c.num_heads * c.head_dim * sum(seen)
