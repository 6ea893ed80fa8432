"""Parameters from published tensors and back, one tensor at a time.

Both directions walk the same rows of `names.py`, so what is read in one way is written
in the other. A tensor that no row names, and a parameter that no tensor fills, are
errors: nothing is dropped.

A parameter is made shard by shard, in the memory where it stays: beside it there is one
layer of one tensor, or some rows of a table, so reading takes little more than the
model itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.core.model_schema import Architecture
from lmx.core.trees import flatten_with_names, nest
from lmx.interop.names import BUFFERS, Row
from lmx.models.decoder import abstract_params, stacks

CHUNK = 1 << 22  # numbers that are converted or compared at once
Watch = Callable[[str, int, int], object]  # what is done, its bytes so far, and in all
ALIGNMENT = 64  # bytes; JAX takes such memory as it is, without a copy


def unwatched(what: str, done: int, total: int) -> None:
    """Shows nothing."""


class Source(Protocol):
    """Published tensors by name; of a tensor, some rows or all."""

    def names(self) -> list[str]: ...
    def shape(self, name: str, /) -> tuple[int, ...]: ...
    def read(self, name: str, rows: slice = ..., /) -> np.ndarray: ...


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


Groups = Mapping[str, list[Piece]]  # by the published tensor that they make up


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
    model: Architecture,
    rows: Sequence[Row],
    source: Source,
    *,
    say_where: str,
    unused: Iterable[str] = (),
    like: Any = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Returns the parameters of `model` as nested dicts of arrays.

    `like` are their abstract values, with dtypes and shardings; without it they are in
    `model.param_dtype` on the first device. Each shard is filled on its own, straight
    from the source. `say_where` names the source in errors; `unused` are patterns of
    tensors that the model has no layer for; `watch` is told how far it is.

    Raises:
      DataError: tensors are missing, left over, of another shape or not finite; they
        are named.
    """
    if model.num_layers > len(source.names()):
        raise DataError(
            f"{say_where} lacks layers: it has {len(source.names())} tensors, and its "
            f"config {model.num_layers} layers"
        )
    groups = pieces(model, rows)
    _check_names(model, groups, source, say_where, (*BUFFERS, *unused))
    wanted = flatten_with_names(like or _abstract(model))
    tell = _told("reading", [x for _, x in wanted], watch)
    reader = _Reader(model, groups, source, say_where, tell)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = {}
    for leaf, x in wanted:
        fill = partial(reader.shard, leaf, x)
        sharding = getattr(x, "sharding", None) or first
        leaves[leaf] = jax.make_array_from_callback(x.shape, sharding, fill)
    return nest(leaves)


class _Reader:
    """Makes any part of any parameter of `model` from published tensors."""

    def __init__(
        self,
        model: Architecture,
        groups: Groups,
        source: Source,
        where: str,
        tell: Callable[[int], None] = lambda count: None,
    ):
        self._model, self._source, self._where = model, source, where
        self._groups, self._tell = groups, tell
        self._homes: dict[str, list[tuple[str, int]]] = {}
        for name, group in groups.items():
            for place, piece in enumerate(group):
                self._homes.setdefault(piece.leaf, []).append((name, place))

    def shard(self, leaf: str, like: Any, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part `index` of a parameter like `like`."""
        spans = [range(*s.indices(n)) for s, n in zip(index, like.shape, strict=True)]
        made = _aligned([len(span) for span in spans], like.dtype)
        for name, place in self._homes[leaf]:
            at = self._groups[name][place].at
            if not all(i in span for i, span in zip(at, spans, strict=False)):
                continue
            own = made[tuple(span.index(i) for i, span in zip(at, spans, strict=False))]
            for where, value in self._parts(name, place, index[len(at) :]):
                if not np.isfinite(value).all():
                    raise DataError(
                        f"{self._where}: {name} holds values that are not finite"
                    )
                own[where] = value
                self._tell(own[where].nbytes)
        return made

    def _parts(
        self, name: str, place: int, index: tuple[slice, ...]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields where to put it and a part of one piece: of a table, a few rows."""
        group = self._groups[name]
        piece = group[place]
        if piece.row.layout != "table":
            value = split_parts(self._source.read(name), self._model, group)[place]
            yield ..., from_theirs(piece, value)[index]
            return
        span = range(*index[0].indices(piece.shape[0]))
        for chunk in row_chunks((len(span), *_published_shape(group)[1:])):
            rows = slice(span.start + chunk.start, span.start + chunk.stop)
            value = split_parts(self._source.read(name, rows), self._model, group)[
                place
            ]
            yield chunk, value[(slice(None), *index[1:])]


def _told(what: str, leaves: Iterable[Any], watch: Watch) -> Callable[[int], None]:
    """Returns what adds to the bytes of `leaves` that `watch` is told are done."""
    total = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        watch(what, done, total)

    tell(0)
    return tell


def _abstract(model: Architecture) -> Any:
    """Returns the shapes and dtypes of the parameters of `model`."""
    shapes = nn.meta.unbox(abstract_params(model))
    dtype = jax.numpy.dtype(model.param_dtype)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an array of anything, in memory that JAX does not copy."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def row_chunks(shape: Sequence[int]) -> Iterator[slice]:
    """Yields slices of the first axis of about `CHUNK` numbers each."""
    rows = shape[0] if shape else 1
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def published(
    model: Architecture,
    rows: Sequence[Row],
    params: Any,
    *,
    what: str = "writing",
    watch: Watch = unwatched,
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Yields (name, shape, function that makes it) of every published tensor.

    `watch` is told how much of `what` is done, as they are made.
    """
    leaves = dict(flatten_with_names(params))
    tell = _told(what, leaves.values(), watch)
    for name, group in pieces(model, rows).items():

        def make(group=group) -> np.ndarray:
            shares = [_share(leaves[piece.leaf], piece.at) for piece in group]
            parts = map(to_theirs, group, shares)
            tell(sum(share.nbytes for share in shares))
            return _join(list(parts), model, group)

        yield name, _published_shape(group), make


def _share(leaf: Any, at: tuple[int, ...]) -> np.ndarray:
    """Returns a layer of a parameter, without moving more of it than that."""
    if isinstance(leaf, jax.Array) and jax.default_backend() != "cpu":
        return np.asarray(leaf[at])
    return np.asarray(leaf)[at]  # as it lies, no copy


def _check_names(
    model, groups: Groups, source: Source, where: str, idle: Iterable[str]
) -> None:
    """Raises a `DataError` unless the source has the wanted tensors and no others."""
    have, need = set(source.names()), set(groups)
    spare = {n for n in have - need if not any(re.search(b, n) for b in idle)}
    tied = [n for n in spare if n in ("lm_head.weight", "output.weight")]
    if model.head == "tied" and tied:
        spare -= set(tied)  # a copy of the embedding, which some files spell out
        embedding = next(n for n, (p, *_) in groups.items() if p.leaf == "embedding")
        if not _same(source, tied[0], embedding):
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
    for name, group in groups.items():
        shape, expected = source.shape(name), _published_shape(group)
        if shape != expected:
            raise DataError(
                f"{where}: {name} has shape {shape} where {expected} is due"
            )


def _same(source: Source, first: str, second: str) -> bool:
    """Returns whether two tensors are equal."""
    shape = source.shape(first)
    return shape == source.shape(second) and all(
        np.array_equal(source.read(first, rows), source.read(second, rows))
        for rows in row_chunks(shape)
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


def split_parts(value: np.ndarray, model, group: list[Piece]) -> list[np.ndarray]:
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
    """Returns the published tensor of all its parts: undoes `split_parts`."""
    if len(group) == 1:
        return parts[0]
    axis, n = _outputs_axis(group[0]), _turns(model, group)
    turned = [np.moveaxis(part, axis, 0) for part in parts]
    turned = [part.reshape(n, -1, *part.shape[1:]) for part in turned]
    value = np.concatenate(turned, axis=1)
    return np.moveaxis(value.reshape(-1, *value.shape[2:]), 0, axis)


def from_theirs(piece: Piece, value: np.ndarray) -> np.ndarray:
    """Returns a piece of a published tensor in our layout."""
    if piece.row.layout == "turned":
        value = _interleave(value, piece.shape[-1], undo=True)
    if piece.row.layout in ("linear", "turned"):
        value = value.T
    return value.reshape(piece.shape)


def to_theirs(piece: Piece, value: np.ndarray) -> np.ndarray:
    """Returns the published layout of a piece: undoes `from_theirs`."""
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
