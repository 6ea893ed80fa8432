"""Parameters in the form that decodes fastest: prepared once, of 8 or 4 bits if asked.

The same model, values and all but for the rounding that `quantize` asks for, as
`Decoder` and `head_logits` make of the stored ones.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmx.core.errors import pick
from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.decoder import (
    abstract_params,
    head_matrix,
    layer_kinds,
    softcap,
    stacks,
    unrolled,
)
from lmx.models.linear import Linear
from lmx.models.moe import dropless
from lmx.models.prepared import Prepared, prepare, product

Quantize = Literal["int8", "int4"] | None
QUANTIZED = {"int8": jnp.int8, "int4": jnp.int4}
TOGETHER = ("query", "key", "value"), ("up", "gate")  # the first holds all
UNROLLED_ON_CPU = 64  # decoding compiles a layer once; see `layer_loop` in the schema


def for_decoding(
    config: Architecture, params: Any, *, quantize: Quantize = None
) -> tuple[Architecture, Any]:
    """Returns the same model in the form that decodes fastest.

    The kernels of linear layers and the head become `Prepared`, once instead of at each
    step, and those that read one input one kernel; the embedding stays as it is stored.
    On CPU the loop over layers is unrolled and each layer gets its own arrays, by
    spelling the layer pattern out: slices of stacked ones would be copied at each step.
    """
    dtype = jnp.dtype(config.compute_dtype)
    kind = dtype if quantize is None else pick(QUANTIZED, quantize, "quantize")
    inputs, form = kernel_inputs(config), kernels.select_form(config.kernels)

    def ready(path, leaf):
        names = tuple(part.key for part in path)
        if "router" in names:  # rounding would change who is chosen
            return jnp.asarray(leaf)
        if names in inputs:
            return prepare(_matrix(leaf, inputs[names]), dtype=kind, form=form)
        return jnp.asarray(leaf, dtype if names[-1] == "kernel" else None)

    head_VD = jnp.asarray(head_matrix(params))
    # The head decides between words: of four bits it costs more than all the layers.
    wide = jnp.int8 if kind == jnp.int4 else kind
    head = prepare(head_VD.T, dtype=wide, form=form)
    params = {name: tree for name, tree in params.items() if name != "head"}
    params = _joined(jax.tree_util.tree_map_with_path(ready, params))
    params["head"] = head
    free: Any = {"remat": "none", "head": "tied"}
    if jax.default_backend() == "cpu" and config.num_layers <= UNROLLED_ON_CPU:
        free["layer_loop"] = "unroll"
    config = dataclasses.replace(dropless(config), **free)
    return _unstack(config, params) if unrolled(config) else (config, params)


def decoding_logits(config: Architecture, params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] from parameters that `for_decoding` made."""
    hidden = hidden.astype(config.compute_dtype)
    form = kernels.select_form(config.kernels)
    return softcap(product(hidden, params["head"], form=form), config.logit_softcap)


def kernel_inputs(config: Architecture) -> dict[tuple[str, ...], int]:
    """Returns how many axes are inputs, for the path of each linear layer's kernel."""
    found: dict[tuple[str, ...], int] = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            found[(*context.module.path, "kernel")] = len(context.module.inputs)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        abstract_params(config)
    return found


def _joined(tree: Any) -> Any:
    """Returns the tree with the kernels that `linear.together` multiplies as one."""
    if not isinstance(tree, dict):
        return tree
    tree = {name: _joined(branch) for name, branch in tree.items()}
    for names in TOGETHER:
        kernels = [tree.get(name, {}).get("kernel") for name in names]
        if all(isinstance(kernel, Prepared) for kernel in kernels):
            axis = kernels[0].weight_OI.ndim - 2
            whole = jax.tree.map(lambda *x, i=axis: jnp.concatenate(x, i), *kernels)
            for name in names:
                tree[name] = {k: v for k, v in tree[name].items() if k != "kernel"}
            tree[names[0]]["kernel"] = whole
    return tree


def _matrix(kernel, inputs: int) -> jax.Array:
    """Returns a stacked kernel [layers, *inputs, *outputs] as [layers, I, O]."""
    kernel = jnp.asarray(kernel)
    rows = math.prod(kernel.shape[1 : 1 + inputs])
    return kernel.reshape(kernel.shape[0], rows, -1)


def _unstack(config: Architecture, params: Any) -> tuple[Architecture, Any]:
    """Returns config and parameters with one period that holds all the layers."""
    layers = []
    for name, pattern, repeats in stacks(config):
        for i in range(repeats):
            for j in range(len(pattern)):
                tree = params[name][str(j)]
                layers.append(jax.tree.map(lambda x, i=i: x[i : i + 1], tree))
    kinds = layer_kinds(config)
    spelled: Any = {
        "pattern": tuple(kind.mixer for kind in kinds),
        "ffns": tuple(kind.ffn for kind in kinds),
        "dense_layers": 0,
    }
    loops = {name for name, *_ in stacks(config)}
    rest = {name: tree for name, tree in params.items() if name not in loops}
    blocks = {str(i): layer for i, layer in enumerate(layers)}
    return dataclasses.replace(config, **spelled), {**rest, "blocks": blocks}
