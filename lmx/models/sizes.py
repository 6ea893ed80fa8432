"""From a parameter budget to a shape, and from a shape to a parameter count.

Pure arithmetic: it needs no JAX, so `lmx config show` can print a shape at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from lmx.core.errors import UserError
from lmx.core.schema import Architecture, ModelConfig

# Finer where models are small; heads of 64 stay a power of two times a small number.
WIDTHS = (
    *range(32, 256, 32),
    *range(256, 1024, 64),
    *range(1024, 4096, 128),
    *range(4096, 32768, 512),
)
DERIVED = (
    "vocab_size",
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def parse_size(text: str) -> int:
    """Returns the number of parameters that '10m', '124M' or '1.5b' stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt])", text.strip().lower())
    count = round(float(match[1]) * UNITS[match[2]]) if match else 0
    if count < 1:
        raise UserError(
            f"model.size={text!r} is not a number of parameters such as '10m' or '1.5b'"
        )
    return count


def resolve(config: ModelConfig, vocab_size: int | None = None) -> Architecture:
    """Returns `config` with every derived number filled in, or raises a `UserError`.

    `vocab_size` is the tokenizer's, taken where the config names none. Given `size`,
    the shape with the nearest parameter count is chosen among those whose width is
    about 64 · num_layers and whose heads are 64 wide (32 below width 256).
    """
    if config.vocab_size is None:
        config = dataclasses.replace(config, vocab_size=vocab_size)
    _check_given(config)
    shape = (config.width, config.num_layers, config.num_heads)
    if config.size is not None and None in shape:
        architecture = _fit(config, parse_size(config.size))
    else:
        architecture = _fill(config, *shape)
    _check(architecture, heads_divide=config.head_dim is None)
    return architecture


def _check_given(c: ModelConfig) -> None:
    """Raises a `UserError` for numbers that are missing or below 1."""
    for name in DERIVED:
        value = getattr(c, name)
        if value is not None and value < 1:
            raise UserError(f"model.{name}={value} must be at least 1")
    if c.context_length < 1:
        raise UserError(f"model.context_length={c.context_length} must be at least 1")
    if c.vocab_size is None:
        raise UserError("model.vocab_size is not set and there is no tokenizer; set it")
    for name in ("width", "num_layers", "num_heads"):
        if getattr(c, name) is None and c.size is None:
            raise UserError(
                f"model.{name} is not set; set it, or let model.size='10m' derive it"
            )


def _fill(c: ModelConfig, width, num_layers, num_heads) -> Architecture:
    """Returns `c` in this shape, head and MLP sizes derived from it."""
    gated = c.mlp.endswith("_gated")
    values = {f.name: getattr(c, f.name) for f in dataclasses.fields(ModelConfig)}
    values |= {
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": c.num_kv_heads or num_heads,
        "head_dim": c.head_dim or max(1, width // num_heads),
        "mlp_dim": c.mlp_dim
        or (64 * math.ceil(width * 8 / 3 / 64) if gated else 4 * width),
    }
    return Architecture(**values)


def _fit(c: ModelConfig, budget: int) -> Architecture:
    """Returns `c` with the width, depth and heads that come nearest to `budget`.

    Depth stays near width / 64 unless one of the two is set: the other then follows.
    """
    shapes: list[tuple[float, int, Architecture]] = []
    for width in _widths(c):
        heads = _heads(c, width)
        if heads is None:
            continue
        ideal = max(1.0, width / 64)
        depths = range(max(1, round(ideal / 1.6)), round(ideal * 1.6) + 2)
        if c.num_layers is not None:
            depths = range(c.num_layers, c.num_layers + 1)
        elif c.width is not None:
            depths = range(1, 1025)
        if shapes and parameter_count(_fill(c, width, depths[0], heads)) > 2 * budget:
            break  # wider ones are larger still
        for depth in depths:
            shape = _fill(c, width, depth, heads)
            miss = abs(math.log(parameter_count(shape) / budget))
            cost = miss + 0.05 * abs(math.log(depth / ideal))
            shapes.append((cost, len(shapes), shape))
    if not shapes:
        given = ("width", "num_heads", "num_kv_heads", "head_dim")
        told = [f"model.{n}={getattr(c, n)}" for n in given if getattr(c, n)]
        raise UserError(
            f"model.size={c.size!r} finds no shape with {', '.join(told)}; set "
            "fewer of them, or model.num_heads too"
        )
    return min(shapes)[2]


def _widths(c: ModelConfig) -> Sequence[int]:
    """Returns the widths to choose from, such as suit a set number or size of heads."""
    if c.width is not None:
        return (c.width,)
    if c.head_dim is None and c.num_heads is not None:
        unit = 8 * c.num_heads
    elif c.head_dim is not None and c.num_heads is None:
        unit = c.head_dim * (c.num_kv_heads or 1)
    else:
        return WIDTHS
    unit *= math.ceil(32 / unit)
    return range(unit, 32768, unit)


def _heads(c: ModelConfig, width: int) -> int | None:
    """Returns how many heads `width` is cut into, or None where none fit.

    As many as are set; else such that they are `head_dim` wide or near to 64 (32 below
    width 256), and `num_kv_heads` divides them.
    """
    if c.num_heads is not None:
        free = c.width is not None or c.head_dim is not None
        return c.num_heads if free or width % c.num_heads == 0 else None
    if c.head_dim is not None:
        options = [max(1, width // c.head_dim)]
        options = options if c.width or width % c.head_dim == 0 else []
    else:
        even = 2 if c.positions == "rope" else 1
        options = [n for n in range(1, width + 1) if width % (n * even) == 0]
    options = [n for n in options if n % (c.num_kv_heads or 1) == 0]
    ideal = width / (64 if width >= 256 else 32)
    return min(options, key=lambda n: abs(math.log(n / ideal)), default=None)


def parameter_count(c: Architecture) -> int:
    """Returns the number of parameters of a filled-in config, in closed form."""
    linear_bias, qkv_bias = c.biases == "all", c.biases in ("qkv", "all")
    norm = c.width * (2 if c.norm == "layernorm" and linear_bias else 1)
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = c.width * (2 * heads + 2 * kv_heads)
    attention += (heads + 2 * kv_heads) * qkv_bias + c.width * linear_bias
    if c.qk_norm == "rmsnorm_all_heads":
        attention += heads + kv_heads
    elif c.qk_norm:
        attention += (
            2 * c.head_dim * (2 if c.qk_norm == "layernorm" and linear_bias else 1)
        )
    ups = 2 if c.mlp.endswith("_gated") else 1
    mlp = (ups + 1) * c.width * c.mlp_dim + (ups * c.mlp_dim + c.width) * linear_bias
    tables = c.vocab_size * c.width * (1 if c.head == "tied" else 2)
    tables += c.context_length * c.width if c.positions == "learned" else 0
    tables += (c.token_types or 0) * c.width
    if c.embedding_norm:
        tables += c.width * (
            2 if c.embedding_norm == "layernorm" and linear_bias else 1
        )
    final = norm if c.norm_position != "post" else 0
    norms = (4 if c.norm_position == "both" else 2) * norm
    return tables + c.num_layers * (attention + mlp + norms) + final


def _check(c: Architecture, *, heads_divide: bool) -> None:
    """Raises a `UserError` for a shape that no model can have.

    Heads whose size was set need not divide the width (`heads_divide`).
    """
    for name in ("attention_softcap", "logit_softcap"):
        cap = getattr(c, name)
        if cap is not None and not cap > 0:
            raise UserError(f"model.{name}={cap} must be above 0, or None for no cap")
    if c.token_types is not None and c.token_types < 1:
        raise UserError(
            f"model.token_types={c.token_types} must be at least 1, or None"
        )
    for name in ("embedding_scale", "attention_scale", "window_rope_base"):
        value = getattr(c, name)
        if value is not None and not value > 0:
            raise UserError(f"model.{name}={value} must be above 0, or None")
    if heads_divide and c.width % c.num_heads:
        divisors = [n for n in range(1, c.width + 1) if c.width % n == 0]
        near = min(divisors, key=lambda n: abs(n - c.num_heads))
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
    if c.rope_scaling == "llama3" and (c.rope_original_length or 0) < 1:
        raise UserError(
            f"model.rope_original_length={c.rope_original_length} must be the context "
            "before scaling: model.rope_scaling is 'llama3'"
        )
    if not c.rope_factor > 0:
        raise UserError(f"model.rope_factor={c.rope_factor} must be above 0")
    if not c.pattern:
        raise UserError("model.pattern=() names no mixer; write ('attention',)")
    if "window" in c.pattern and (c.window is None or c.window < 1):
        raise UserError(
            f"model.window={c.window} must be at least 1: model.pattern has 'window'"
        )


def check_causal(c: ModelConfig, what: str) -> None:
    """Raises a `UserError` unless `c` can do `what`, which predicts tokens."""
    if c.attention != "causal":
        raise UserError(
            f"model.attention={c.attention!r} sees the tokens that it would have to "
            f"predict: {what} needs 'causal'; lmx embed is what this model is for"
        )


def flops_per_token(c: Architecture) -> float:
    """Returns the FLOPs of one training step per token, as MFU counts them.

    6 per parameter that multiplies, and 12 · layers · heads · head size · context for
    attention without the saving of causality (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B). A window shortens the context of its layers.
    """
    tables = c.vocab_size * c.width * (0 if c.head == "tied" else 1)
    tables += c.context_length * c.width if c.positions == "learned" else 0
    tables += (c.token_types or 0) * c.width
    window = c.window or c.context_length
    window = window if c.attention == "causal" else 2 * window - 1
    seen = [
        min(c.context_length, window)
        if c.pattern[i % len(c.pattern)] == "window"
        else c.context_length
        for i in range(c.num_layers)
    ]
    return 6 * (parameter_count(c) - tables) + 12 * c.num_heads * c.head_dim * sum(seen)
