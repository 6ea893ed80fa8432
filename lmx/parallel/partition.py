"""State → shardings, and the compilation of one pure function over a mesh."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.core.errors import UserError
from lmx.core.trees import flatten_with_names, mirror
from lmx.parallel.rules import Rules, check_divisible, to_spec


class Partition:
    """Where everything lives: a mesh and the rules that lay arrays out on it."""

    def __init__(self, mesh: Mesh, rules: Rules):
        self.mesh = mesh
        self.rules = rules
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch = NamedSharding(mesh, to_spec(("batch",), rules))

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Inside it, the logical constraints of models refer to this mesh."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(self.rules.items())):
            yield

    @property
    def batch_parts(self) -> int:
        """The number of parts that the rows of a batch are spread over."""
        axes = self.rules["batch"]
        names = (axes,) if isinstance(axes, str) else axes or ()
        return math.prod(self.mesh.shape[axis] for axis in names)

    def check(self, boxed_params: Any, batch_size: int) -> None:
        """Raises a `UserError` if the mesh divides not every parameter or the batch."""
        parts = self.batch_parts
        if batch_size % parts:
            raise UserError(
                f"{batch_size} rows per micro-batch (data.batch_size / "
                f"optim.accumulate_steps) do not divide over {parts} devices "
                f"(parallel.data · fsdp · expert); nearest that do: "
                f"{max(1, round(batch_size / parts)) * parts}"
            )
        named = flatten_with_names(nn.meta.unbox(boxed_params))
        axes = [box.names for box in _boxes(boxed_params)]
        shapes = [(n, x.shape, a) for (n, x), a in zip(named, axes, strict=True)]
        check_divisible(shapes, self.mesh, self.rules)

    def state_shardings(self, state: Any, boxed_params: Any) -> Any:
        """Returns a sharding for each leaf of an (abstract) training state.

        What mirrors a parameter (itself, its moments, its average) lies like it; the
        rest (counts, factored statistics) is on every device.
        """
        params = nn.meta.unbox(boxed_params)
        names = [name for name, _ in flatten_with_names(params)]
        specs = [to_spec(box.names, self.rules) for box in _boxes(boxed_params)]
        shardings = {
            name: NamedSharding(self.mesh, spec)
            for name, spec in zip(names, specs, strict=True)
        }
        return jax.tree.map(
            lambda name: shardings.get(name, self.replicated), mirror(state, params)
        )

    def place_batch(self, batch: Any) -> Any:
        """Returns the arrays of a batch on the devices that work on them."""
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.batch, np.asarray(x)),
            batch,
        )

    def jit(
        self, function: Callable, *, out: Any = None, donate: tuple = ()
    ) -> Callable:
        """Returns `function` compiled on first call inside this partition's scope.

        `out` are the shardings of the result, and `donate` the arguments whose memory
        it may reuse. Arguments keep the placement they come with.
        """
        compiled = jax.jit(function, out_shardings=out, donate_argnums=donate)

        def call(*args):
            with self.scope():
                return compiled(*args)

        return call


def _boxes(boxed_params: Any) -> list[nn.LogicallyPartitioned]:
    """Returns the boxes that name the axes of each parameter, in leaf order."""
    return jax.tree.leaves(
        boxed_params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
