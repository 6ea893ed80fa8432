"""Parameters in the form that decodes fastest: cast, transposed and unstacked once.

The same model, values and all, as `Decoder` and `head_logits` make of the stored ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.schema import Architecture
from lmx.models.decoder import head_logits, head_matrix, stacks, unrolled


def for_decoding(config: Architecture, params: Any) -> tuple[Architecture, Any]:
    """Returns the same model in the form that decodes fastest.

    Kernels and head are cast to the compute dtype, once instead of at each step. The
    head becomes `head_DV`, a transposed copy: embeddings are still read in their stored
    dtype, and a one-row product with [D, V] is up to ten times as fast on CPU. Where
    layers are unrolled, each gets its own arrays, by spelling the layer pattern out:
    slices of stacked ones would be copied at every call.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def cast(path, leaf):
        return jnp.asarray(leaf, dtype if path[-1].key == "kernel" else None)

    head_DV = jnp.asarray(head_matrix(params)).astype(dtype).T
    params = {name: tree for name, tree in params.items() if name != "head"}
    params = jax.tree_util.tree_map_with_path(cast, params)
    params = {**params, "head_DV": head_DV}
    config = dataclasses.replace(config, remat="none", head="tied")
    return _unstack(config, params) if unrolled(config) else (config, params)


def decoding_logits(config: Architecture, params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] from parameters that `for_decoding` made."""
    return head_logits(config, {"head": params["head_DV"].T}, hidden)


def _unstack(config: Architecture, params: Any) -> tuple[Architecture, Any]:
    """Returns config and parameters with one period that holds all the layers."""
    layers = []
    for name, pattern, repeats in stacks(config):
        for i in range(repeats):
            for j in range(len(pattern)):
                tree = params[name][str(j)]
                layers.append(jax.tree.map(lambda x, i=i: x[i : i + 1], tree))
    period = len(config.pattern)
    pattern = tuple(config.pattern[i % period] for i in range(config.num_layers))
    rest = {k: v for k, v in params.items() if k not in ("blocks", "tail")}
    blocks = {str(i): layer for i, layer in enumerate(layers)}
    return dataclasses.replace(config, pattern=pattern), {**rest, "blocks": blocks}
