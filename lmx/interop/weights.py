"""Parameters from published tensors and back, one tensor at a time.

Both directions walk the same rows of `names.py`, so what is read in one way is written
in the other. A tensor that no row names, and a parameter that no tensor fills, are
errors: nothing is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.core.schema import Architecture
from lmx.core.trees import flatten_with_names, nest
from lmx.interop.names import BUFFERS, UNUSED, Row
from lmx.models.decoder import abstract_params, stacks


class Source(Protocol):
    """Published tensors by name."""

    def names(self) -> list[str]: ...
    def read(self, name: str, /) -> np.ndarray: ...


class Piece(NamedTuple):
    """One layer's (and expert's) share of a parameter, and the row that publishes it.

    Attributes:
      leaf: the path of the parameter, such as `blocks/0/mlp/up/kernel`.
      at: where its share is along the first axes: (), (layer,) or (layer, expert).
      shape: of this share.
      row: of the table.
    """

    leaf: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    row: Row


def pieces(model: Architecture, rows: Sequence[Row]) -> dict[str, list[Piece]]:
    """Returns the shares of parameters that make up each published tensor, in order.

    Raises:
      UserError: the scheme has no name for one of them.
    """
    by_ours = {row.ours: row for row in rows}
    offsets, layer = {}, 0
    for name, pattern, repeats in stacks(model):
        offsets[name] = (layer, len(pattern))
        layer += len(pattern) * repeats
    found: dict[str, list[Piece]] = {}
    for leaf, value in flatten_with_names(nn.meta.unbox(abstract_params(model))):
        stack, _, rest = leaf.partition("/")
        stacked = stack in offsets
        j, ours = rest.split("/", 1) if stacked else ("0", leaf)
        if ours not in by_ours:
            raise UserError(f"{leaf} has no name in the format; it cannot be exported")
        row = by_ours[ours]
        depth = row.theirs.count("{}")
        first, period = offsets.get(stack, (0, 1))
        for at in np.ndindex(value.shape[:depth]):
            numbers = [first + i * period + int(j) for i in at[:1]] + [*at[1:]]
            piece = Piece(leaf, at, value.shape[depth:], row)
            found.setdefault(row.theirs.format(*numbers), []).append(piece)
    for group in found.values():
        group.sort(key=lambda piece: piece.row.part)
    return found


def read_params(
    model: Architecture, rows: Sequence[Row], source: Source, *, say_where: str
) -> dict[str, Any]:
    """Returns the parameters of `model` as nested dicts of NumPy arrays.

    They have `model.param_dtype`. `say_where` names the source in errors.

    Raises:
      DataError: tensors are missing, left over or of another shape; they are named.
    """
    import jax.numpy as jnp

    if model.num_layers > len(source.names()):
        raise DataError(
            f"{say_where} lacks layers: it has {len(source.names())} tensors, and its "
            f"config {model.num_layers} layers"
        )
    wanted = pieces(model, rows)
    _check_names(model, wanted, source, say_where)
    dtype = jnp.dtype(model.param_dtype)
    shapes = dict(flatten_with_names(nn.meta.unbox(abstract_params(model))))
    leaves: dict[str, np.ndarray] = {}
    for name, group in wanted.items():
        value = _checked(source.read(name), group, f"{say_where}: {name}")
        for piece, part in zip(group, _split(value, model, group), strict=True):
            if piece.leaf not in leaves:
                leaves[piece.leaf] = np.empty(shapes[piece.leaf].shape, dtype)
            leaves[piece.leaf][piece.at] = _from_theirs(piece, part)
    return nest(leaves)


def published(
    model: Architecture, rows: Sequence[Row], params: Any
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Yields (name, shape, function that makes it) of every published tensor."""
    leaves = dict(flatten_with_names(params))
    for name, group in pieces(model, rows).items():

        def make(group=group) -> np.ndarray:
            return _join(
                [_to_theirs(p, np.asarray(leaves[p.leaf][p.at])) for p in group],
                model,
                group,
            )

        yield name, _published_shape(group), make


def unused(source: Source) -> dict[str, str]:
    """Returns the parameters of `source` that lmx has no layer for, and why."""
    return {
        name: why
        for name in sorted(source.names())
        for pattern, why in UNUSED.items()
        if re.search(pattern, name)
    }


def _check_names(
    model, wanted: dict[str, list[Piece]], source: Source, where: str
) -> None:
    """Raises a `DataError` unless the source has the wanted tensors and no others."""
    have, need = set(source.names()), set(wanted)
    idle = (*BUFFERS, *UNUSED)
    spare = {n for n in have - need if not any(re.search(b, n) for b in idle)}
    tied = [n for n in spare if n in ("lm_head.weight", "output.weight")]
    if model.head == "tied" and tied:
        spare -= set(tied)  # a copy of the embedding, which some files spell out
        embedding = next(n for n, (p, *_) in wanted.items() if p.leaf == "embedding")
        if not np.array_equal(source.read(tied[0]), source.read(embedding)):
            raise DataError(
                f"{where}: {tied[0]} is not {embedding}, though the config ties them"
            )
    for what, names in (("lacks", need - have), ("also holds", spare)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise DataError(
                f"{where} {what} {len(names)} tensors, such as {some}: it is not the "
                "model that its config describes"
            )


def _sides(piece: Piece) -> tuple[int, int]:
    """Returns the inputs and outputs of a kernel: heads belong to their width."""
    sizes = piece.shape
    cut = len(sizes) - 1 if "/out/" in piece.leaf or len(sizes) == 2 else 1
    return math.prod(sizes[:cut]), math.prod(sizes[cut:])


def _outputs_axis(piece: Piece) -> int:
    """Returns the axis of the published tensor along which parts share it."""
    return -1 if piece.row.layout in ("conv", "table") else 0


def _shape_alone(piece: Piece) -> tuple[int, ...]:
    """Returns the published shape of a piece that shares its tensor with no other."""
    match piece.row.layout:
        case "table":
            return piece.shape
        case "vector":
            return (math.prod(piece.shape),)
        case "conv":
            return _sides(piece)
        case _:
            return _sides(piece)[::-1]


def _published_shape(group: list[Piece]) -> tuple[int, ...]:
    """Returns the shape of the published tensor that the group's parts make up."""
    shape, axis = list(_shape_alone(group[0])), _outputs_axis(group[0])
    shape[axis] = sum(_shape_alone(piece)[axis] for piece in group)
    return tuple(shape)


def _turns(model: Architecture, group: list[Piece]) -> int:
    """Returns how many times the parts of a tensor take turns along its outputs."""
    match group[0].row.turns:
        case "whole":
            return 1
        case "heads":
            return model.num_heads
        case "units":
            return _shape_alone(group[0])[_outputs_axis(group[0])]


def _split(value: np.ndarray, model, group: list[Piece]) -> list[np.ndarray]:
    """Returns each piece's part of a published tensor."""
    if len(group) == 1:
        return [value]
    axis, n = _outputs_axis(group[0]), _turns(model, group)
    value = np.moveaxis(value, axis, 0)
    value = value.reshape(n, -1, *value.shape[1:])
    sizes = [_shape_alone(piece)[axis] // n for piece in group]
    parts = np.split(value, np.cumsum(sizes)[:-1], axis=1)
    return [np.moveaxis(p.reshape(-1, *p.shape[2:]), 0, axis) for p in parts]


def _join(parts: list[np.ndarray], model, group: list[Piece]) -> np.ndarray:
    """Returns the published tensor of all its parts: undoes `_split`."""
    if len(group) == 1:
        return parts[0]
    axis, n = _outputs_axis(group[0]), _turns(model, group)
    turned = [np.moveaxis(part, axis, 0) for part in parts]
    turned = [part.reshape(n, -1, *part.shape[1:]) for part in turned]
    value = np.concatenate(turned, axis=1)
    return np.moveaxis(value.reshape(-1, *value.shape[2:]), 0, axis)


def _checked(value: np.ndarray, group: list[Piece], where: str) -> np.ndarray:
    """Returns a published tensor, which must be finite and of the expected shape."""
    expected = _published_shape(group)
    if value.shape != expected:
        raise DataError(f"{where} has shape {value.shape} where {expected} is due")
    if not np.isfinite(value).all():
        raise DataError(f"{where} holds values that are not finite")
    return value


def _from_theirs(piece: Piece, value: np.ndarray) -> np.ndarray:
    """Returns a piece of a published tensor in our layout."""
    if piece.row.layout == "turned":
        value = _interleave(value, piece.shape[-1], undo=True)
    if piece.row.layout in ("linear", "turned"):
        value = value.T
    return value.reshape(piece.shape)


def _to_theirs(piece: Piece, value: np.ndarray) -> np.ndarray:
    """Returns the published layout of a piece: undoes `_from_theirs`."""
    match piece.row.layout:
        case "vector":
            return value.reshape(-1)
        case "table":
            return value
    value = value.reshape(_sides(piece))
    if piece.row.layout == "conv":
        return value
    if piece.row.layout == "turned":
        return _interleave(value.T, piece.shape[-1], undo=False)
    return value.T


def _interleave(rows: np.ndarray, head_dim: int, *, undo: bool) -> np.ndarray:
    """Turns rotary pairs (i, i + H/2) of each head's rows into neighbours, or back."""
    split = (-1, head_dim // 2, 2) if undo else (-1, 2, head_dim // 2)
    return rows.reshape(*split, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
