"""From a parameter budget to a shape, and from a shape to all its numbers.

Pure arithmetic: it needs no JAX, so `lmx config show` can print a shape at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture, ModelConfig
from lmx.models.checks import check
from lmx.models.counting import parameter_count

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
    "expert_dim",
    "value_dim",
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
    check(architecture, heads_divide=config.head_dim is None)
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
    values["expert_dim"] = c.expert_dim or values["mlp_dim"]
    values["value_dim"] = c.value_dim or values["head_dim"] - (c.rope_dim or 0)
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
