"""Which parameters of a model train, which are wrapped, and how the two are one model.

An `Adapter` parts the parameters of a model into those that train and those that do
not, joins the two into what a `Decoder` takes, and merges them into plain parameters.
It reads no file and no text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core.model_schema import Architecture
from lmx.core.schema import AdapterConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.finetune.kernels import Frozen, LowRank, kernel_lengths, merged
from lmx.finetune.targets import check, select
from lmx.generate.weights import QUANTIZED, kernel_inputs
from lmx.models.checks import check_causal
from lmx.models.decoder import abstract_params, unrolled
from lmx.models.kernels import select_form
from lmx.models.prepared import Prepared, prepare


class Matrix(NamedTuple):
    """A linear layer's kernel in a stack of layers.

    Attributes:
      shape: [layers, *inputs, *outputs].
      axes: the logical name of each.
      split: where outputs begin.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    split: int

    @property
    def sides(self) -> tuple[int, int]:
        """The numbers of inputs I and outputs O."""
        return math.prod(self.shape[1 : self.split]), math.prod(
            self.shape[self.split :]
        )


def is_adapted(config: AdapterConfig) -> bool:
    """Returns whether not all parameters train."""
    return config.method is not None or bool(config.train)


class Adapter:
    """What of a model trains, as `config` says.

    Attributes:
      targets: names of the kernels that get a change of low rank.
      trained: names of the parameters that train as they are.
    """

    def __init__(self, config: AdapterConfig, model: Architecture):
        """Chooses what trains.

        Raises:
          UserError: the model is no decoder, a pattern finds nothing or what cannot be
            adapted, or the rank does not fit; the parameter is named.
        """
        check(config)
        check_causal(model, "adapter.method")
        self.config, self.model = config, model
        boxed = jax.tree.leaves(abstract_params(model), is_leaf=_is_box)
        shapes = flatten_with_names(nn.meta.unbox(abstract_params(model)))
        self._axes = {n: b.names for (n, _), b in zip(shapes, boxed, strict=True)}
        self._shapes = dict(shapes)
        linear = {"/".join(path): n for path, n in kernel_inputs(model).items()}
        self._linear = {
            name: Matrix(x.shape, self._axes[name], 1 + linear[name])
            for name, x in shapes
            if name in linear
        }
        sides = {name: matrix.sides for name, matrix in self._linear.items()}
        self.targets, self.trained = select(config, [n for n, _ in shapes], sides)
        # Rounding a router would change who is chosen.
        self._wrapped = {
            name: matrix
            for name, matrix in self._linear.items()
            if name in self.targets or not ("router" in name or name in self.trained)
        }
        root = config.rank if config.method != "rslora" else math.sqrt(config.rank)
        self.scale = config.alpha / root

    def params(self, key: jax.Array, base: Any) -> dict[str, Any]:
        """Returns what trains, at its start: the joined model is then the base.

        A is uniform in ±1/√I and B zero, as in `peft`.
        """
        named = dict(flatten_with_names(base))
        dtype = jnp.float32
        found = {name: named[name] for name in self._shapes if name in self.trained}
        for i, name in enumerate(sorted(self.targets)):
            matrix, rank = self._linear[name], self.config.rank
            layers, (inputs, outputs) = matrix.shape[0], matrix.sides
            bound = 1 / math.sqrt(inputs)
            shape = (layers, inputs, rank)
            found[f"{name}/a"] = jax.random.uniform(
                jax.random.fold_in(key, i), shape, dtype, -bound, bound
            )
            found[f"{name}/b"] = jnp.zeros((layers, rank, outputs), dtype)
            if self.config.method == "dora":
                lengths = jax.vmap(lambda w, n=inputs: kernel_lengths(w, inputs=n))
                found[f"{name}/magnitude"] = lengths(self._base(name, named[name]))
        return nest(found)

    def frozen(self, base: Any, *, dtype: Any = None) -> dict[str, Any]:
        """Returns what does not train: kernels in `dtype`, or of few bits.

        By default it is that which products would round them to.
        """
        return nest(
            {
                f"{name}/base" if name in self._wrapped else name: self._base(
                    name, x, dtype
                )
                for name, x in flatten_with_names(base)
                if name not in self.trained
            }
        )

    def join(self, params: Any, frozen: Any) -> dict[str, Any]:
        """Returns the parameters of the model with wrapped kernels; copies nothing."""
        return self._wrap(_merge(params, frozen))

    def merge(self, params: Any, frozen: Any) -> dict[str, Any]:
        """Returns plain parameters in `param_dtype`: what `join` computes with."""
        dtype = jnp.dtype(self.model.param_dtype)

        def whole(name: str, leaf: Any) -> jax.Array:
            if not isinstance(leaf, Frozen | LowRank):
                return leaf.astype(dtype)
            if isinstance(leaf, Frozen) and not isinstance(leaf.base, Prepared):
                return leaf.base.astype(dtype)
            inputs, _ = self._linear[name].sides
            kernels = jax.vmap(lambda kernel: merged(kernel, inputs=inputs))(leaf)
            return kernels.reshape(self._linear[name].shape).astype(dtype)

        joined = self.join(params, frozen)
        kernels = {name: _at(joined, name) for name in self._shapes}
        return nest({name: whole(name, leaf) for name, leaf in kernels.items()})

    def boxed(self) -> dict[str, Any]:
        """Returns abstract values of all leaves of both parts, with logical axes."""
        base = nest(self._shapes)
        parts = jax.eval_shape(
            lambda key, base: (self.params(key, base), self.frozen(base)),
            jax.random.key(0),
            base,
        )
        return nest(
            {
                name: nn.LogicallyPartitioned(leaf, self._leaf_axes(name, leaf))
                for part in parts
                for name, leaf in flatten_with_names(part)
            }
        )

    def counts(self) -> tuple[int, int]:
        """Returns how many parameters train, and how many the model has."""
        key, base = jax.random.key(0), nest(self._shapes)
        trained = jax.eval_shape(self.params, key, base)
        size = sum(x.size for x in jax.tree.leaves(trained))
        return size, sum(x.size for x in self._shapes.values())

    def matrix(self, name: str) -> Matrix:
        """Returns the shape of a linear layer's kernel."""
        return self._linear[name]

    def _base(self, name: str, kernel: jax.Array, dtype: Any = None) -> Any:
        """Returns a leaf as it is kept while it does not train."""
        if name not in self._wrapped:
            return kernel
        if self.config.quantize is None:
            return kernel.astype(dtype or self._frozen_dtype())
        matrix = self._linear[name]
        return prepare(
            kernel.reshape(matrix.shape[0], *matrix.sides),
            dtype=QUANTIZED[self.config.quantize],
            form=select_form(self.model.kernels),
        )

    def _frozen_dtype(self) -> str:
        """Returns the dtype of frozen kernels: the compute dtype, so none is cast."""
        if select_form(self.model.kernels) == "cpu" and not unrolled(self.model):
            # XLA's CPU compiler widens a whole bfloat16 stack to take slices of it.
            return self.model.param_dtype
        return self.model.compute_dtype

    def _wrap(self, tree: Any, path: str = "") -> Any:
        """Returns the tree with a wrapped kernel for each table of its arrays."""
        if not isinstance(tree, Mapping):
            return tree
        if path in self._wrapped:  # without its change, a target is as it was
            return LowRank(**tree, scale=self.scale) if "a" in tree else Frozen(**tree)
        start = f"{path}/" if path else ""
        return {name: self._wrap(x, f"{start}{name}") for name, x in tree.items()}

    def _leaf_axes(self, name: str, leaf: Any) -> tuple[str | None, ...]:
        """Returns the logical axes of a leaf of either part.

        A has the kernel's axis of inputs and B that of outputs; ranks, and the groups
        of few bits, stay whole. Several axes that became one lie as their first.
        """
        if name in self._axes:
            return self._axes[name]
        kernel, _, part = name.rpartition("/")
        kernel = kernel.removesuffix("/base")
        matrix = self._linear[kernel]
        layers, inputs, outputs = (matrix.axes[i] for i in (0, 1, matrix.split))
        match part:
            case "base":
                return matrix.axes
            case "a":
                return layers, inputs, None
            case "b":
                return layers, None, outputs
            case "weight_OI":
                return layers, outputs, inputs
        return (layers, outputs, None)[: leaf.ndim]  # lengths and units of outputs


@dataclasses.dataclass(frozen=True)
class Change:
    """An adapter and what it has learned, apart from the model that it changes."""

    adapter: Adapter
    params: Any

    def of(self, base: Any, *, like: Any = None) -> dict[str, Any]:
        """Returns the changed model's plain parameters, of those of the model.

        Abstract parameters `like` them give dtypes and shardings.
        """
        adapter, change = self.adapter, self.params
        out = None
        if like is not None:
            out = jax.tree.map(lambda x: x.sharding, like)
            mesh = jax.tree.leaves(out)[0].mesh
            change = jax.device_put(change, NamedSharding(mesh, PartitionSpec()))

        def merge(change, base):
            plain = adapter.merge(change, adapter.frozen(base, dtype=jnp.float32))
            if like is None:
                return plain
            return jax.tree.map(lambda x, to: x.astype(to.dtype), plain, like)

        return jax.jit(merge, out_shardings=out)(change, base)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _merge(first: Any, second: Any) -> dict[str, Any]:
    """Returns one nested dictionary with the leaves of two."""
    both = {**first, **second}
    for name in first.keys() & second.keys():
        both[name] = _merge(first[name], second[name])
    return both


def _at(tree: Any, name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree
