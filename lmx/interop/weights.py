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
from lmx.interop.names import BUFFERS, Row
from lmx.models.decoder import abstract_params, stacks


class Source(Protocol):
    """Published tensors by name."""

    def names(self) -> list[str]: ...
    def read(self, name: str, /) -> np.ndarray: ...


class Piece(NamedTuple):
    """One layer's share of one parameter, and the row that says where it is published.

    Attributes:
      leaf: the path of the parameter, such as `blocks/0/mlp/up/kernel`.
      at: the slice of its first axis, None for a parameter that is not stacked.
      shape: of this share.
      row: of the table.
      theirs: the published name.
    """

    leaf: str
    at: int | None
    shape: tuple[int, ...]
    row: Row
    theirs: str


def pieces(model: Architecture, rows: Sequence[Row]) -> list[Piece]:
    """Returns every share of every parameter of `model`.

    Raises:
      UserError: the scheme has no name for one of them.
    """
    by_ours = {row.ours: row for row in rows}
    offsets, layer = {}, 0
    for name, pattern, repeats in stacks(model):
        offsets[name] = (layer, len(pattern))
        layer += len(pattern) * repeats
    found = []
    for leaf, value in flatten_with_names(nn.meta.unbox(abstract_params(model))):
        stack, _, rest = leaf.partition("/")
        stacked = stack in offsets
        j, ours = rest.split("/", 1) if stacked else ("0", leaf)
        if ours not in by_ours:
            raise UserError(f"{leaf} has no name in the format; it cannot be exported")
        row = by_ours[ours]
        if not stacked:
            found.append(Piece(leaf, None, value.shape, row, row.theirs))
            continue
        first, period = offsets[stack]
        for i in range(value.shape[0]):
            theirs = row.theirs.format(first + i * period + int(j))
            found.append(Piece(leaf, i, value.shape[1:], row, theirs))
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
    for piece in wanted:
        value = _from_theirs(model, piece, source.read(piece.theirs), say_where)
        if piece.at is None:
            leaves[piece.leaf] = value.astype(dtype)
            continue
        if piece.leaf not in leaves:
            leaves[piece.leaf] = np.empty(shapes[piece.leaf].shape, dtype)
        leaves[piece.leaf][piece.at] = value
    return nest(leaves)


def published(
    model: Architecture, rows: Sequence[Row], params: Any
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Yields (name, shape, function that makes it) of every published tensor."""
    leaves = dict(flatten_with_names(params))
    groups: dict[str, list[Piece]] = {}
    for piece in pieces(model, rows):
        groups.setdefault(piece.theirs, []).append(piece)
    for name, group in groups.items():
        group.sort(key=lambda piece: piece.row.part)

        def make(group=group) -> np.ndarray:
            parts = [_to_theirs(model, p, _share(leaves, p)) for p in group]
            axis = -1 if group[0].row.layout == "conv" else 0
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)

        yield name, _published_shape(group), make


def _share(leaves: dict[str, Any], piece: Piece) -> np.ndarray:
    leaf = leaves[piece.leaf]
    return np.asarray(leaf if piece.at is None else leaf[piece.at])


def _check_names(model, wanted: list[Piece], source: Source, where: str) -> None:
    """Raises a `DataError` unless the source has the wanted tensors and no others."""
    have, need = set(source.names()), {piece.theirs for piece in wanted}
    spare = {n for n in have - need if not any(re.search(b, n) for b in BUFFERS)}
    tied = [n for n in spare if n in ("lm_head.weight", "output.weight")]
    if model.head == "tied" and tied:
        spare -= set(tied)  # a copy of the embedding, which some files spell out
        embedding = next(p.theirs for p in wanted if p.leaf == "embedding")
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


def _published_shape(group: list[Piece]) -> tuple[int, ...]:
    """Returns the shape of the published tensor that the group's parts make up."""
    first, n = group[0], len(group)
    match first.row.layout:
        case "table":
            return first.shape
        case "vector":
            return (n * math.prod(first.shape),)
        case "conv":
            inputs, outputs = _sides(first)
            return (inputs, n * outputs)
        case _:
            inputs, outputs = _sides(first)
            return (n * outputs, inputs)


def _from_theirs(model, piece: Piece, value: np.ndarray, where: str) -> np.ndarray:
    """Returns this piece of a published tensor in our layout."""
    (i, n), layout = piece.row.part, piece.row.layout
    axis = -1 if layout == "conv" else 0
    if value.shape[axis:][:1] and value.shape[axis] % n == 0:
        size = value.shape[axis] // n
        value = (
            value[..., i * size : (i + 1) * size] if axis else value[i * size :][:size]
        )
    expected = _published_shape([piece])
    if value.shape != expected:
        raise DataError(
            f"{where}: {piece.theirs} has shape {value.shape} where {expected} is due"
        )
    if not np.isfinite(value).all():
        raise DataError(f"{where}: {piece.theirs} holds values that are not finite")
    if layout == "turned":
        value = _interleave(value, model.head_dim, undo=True)
    if layout in ("linear", "turned"):
        value = value.T
    return value.reshape(piece.shape)


def _to_theirs(model, piece: Piece, value: np.ndarray) -> np.ndarray:
    """Returns the published layout of this piece: undoes `_from_theirs`."""
    layout = piece.row.layout
    if layout == "vector":
        return value.reshape(-1)
    if layout == "table":
        return value
    value = value.reshape(_sides(piece))
    if layout == "conv":
        return value
    value = value.T
    return (
        _interleave(value, model.head_dim, undo=False) if layout == "turned" else value
    )


def _interleave(rows: np.ndarray, head_dim: int, *, undo: bool) -> np.ndarray:
    """Turns rotary pairs (i, i + H/2) of each head's rows into neighbours, or back."""
    split = (-1, head_dim // 2, 2) if undo else (-1, 2, head_dim // 2)
    return rows.reshape(*split, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
