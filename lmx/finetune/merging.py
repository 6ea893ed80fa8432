"""Several models of one shape become one, leaf by leaf.

A leaf is merged in float64 and rounded once. Nothing here reads a file: whoever does
needs one leaf of each model at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.core.errors import UserError

STACKED = re.compile(r"^(dense|blocks|tail)/")  # parameters with a first axis of layers
PARALLEL = 1.0 - 1e-9  # a cosine from which on the great circle is a straight line

Leaves = Sequence[np.ndarray]
Method = Callable[..., np.ndarray]


def uniform(leaves: Leaves, *, weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted mean: model soups (Wortsman et al. 2022, 2203.05482)."""
    shares = np.asarray(weights, np.float64) / sum(weights)
    return np.einsum("m,m...->...", shares, np.stack(leaves))


def ema(leaves: Leaves, *, decay: float) -> np.ndarray:
    """Returns decay · average + (1 − decay) · next, in the order of the models."""
    average, *others = leaves
    for leaf in others:
        average = decay * average + (1 - decay) * leaf
    return average


def slerp(leaves: Leaves, *, share: float) -> np.ndarray:
    """Returns the point at `share` of the arc from one leaf to another (Shoemake 1985).

    Angles are those between whole leaves, or straight where they are nearly parallel.
    """
    one, other = leaves
    norms = np.linalg.norm(one), np.linalg.norm(other)
    straight = (1 - share) * one + share * other
    if not all(norms):
        return straight
    cosine = float(np.vdot(one, other) / (norms[0] * norms[1]))
    if abs(cosine) > PARALLEL:
        return straight
    angle = np.arccos(cosine)
    first, second = np.sin((1 - share) * angle), np.sin(share * angle)
    return (first * one + second * other) / np.sin(angle)


def task_arithmetic(
    leaves: Leaves, *, base: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    """Returns base + Σ weight · (leaf − base) (Ilharco et al. 2022, arXiv:2212.04089).

    A weight below 0 unlearns a task.
    """
    changes = zip(weights, leaves, strict=True)
    return base + sum(weight * (leaf - base) for weight, leaf in changes)


METHODS: dict[str, Method] = {
    "uniform": uniform,
    "ema": ema,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
}


def merge_leaf(name: str, method: Method, leaves: Leaves, **options: Any) -> np.ndarray:
    """Returns a merged leaf in the type of the first; layers are merged each by itself.

    Raises:
      UserError: it is not finite, in a model or after.
    """
    dtype = leaves[0].dtype
    wide = [np.asarray(leaf, np.float64) for leaf in leaves]
    if (base := options.pop("base", None)) is not None:
        wide.append(np.asarray(base, np.float64))

    def one(parts: Leaves) -> np.ndarray:
        if base is None:
            return method(parts, **options)
        *models, start = parts
        return method(models, base=start, **options)

    if STACKED.match(name):
        found = np.stack([one(layer) for layer in zip(*wide, strict=True)])
    else:
        found = one(wide)
    if not np.isfinite(found).all():
        raise UserError(f"{name} is not finite once merged; look for the model that is")
    return found.astype(dtype)


def check_options(
    method: str, count: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the options of a method for `count` models, with what it takes for None.

    `options` are weights, decay, share and whether there is a base.

    Raises:
      UserError: an option is missing, out of range, or for another method.
    """
    weights, decay, share = (options[k] for k in ("weights", "decay", "share"))
    reads = {
        "uniform": ("weights",),
        "ema": ("decay",),
        "slerp": ("share",),
        "task_arithmetic": ("base", "weights"),
    }[method]
    for name, value in options.items():
        if name not in reads and value is not None:
            raise UserError(f"--{name} is not for --method={method}; leave it out")
    if method == "slerp" and count != 2:
        raise UserError(f"--method=slerp is between 2 models, not {count}")
    if count < 2 and method != "task_arithmetic":
        raise UserError(f"--method={method} needs at least 2 models, not {count}")
    if method == "task_arithmetic" and options["base"] is None:
        raise UserError(
            "--method=task_arithmetic adds what models learned since --base=DIR; say "
            "which model that is"
        )
    if weights is not None and len(weights) != count:
        raise UserError(f"--weights has {len(weights)} numbers for {count} models")
    if method == "uniform" and weights is not None and not sum(weights) > 0:
        raise UserError(f"--weights={list(weights)} must have a sum above 0")
    for name, value in (("decay", decay), ("share", share)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name}={value} must lie in 0..1")
    chosen = {
        "weights": tuple(weights or [1.0] * count),
        "decay": 0.5 if decay is None else decay,
        "share": 0.5 if share is None else share,
    }
    return {name: value for name, value in chosen.items() if name in reads}
