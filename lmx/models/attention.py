"""Multi-head attention with grouped keys, optional window, and a key/value cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.linear import make_linear, together
from lmx.models.norms import make_norm
from lmx.models.parameters import parameter
from lmx.models.positions import alibi_slopes

NEVER = 2**30  # the position of a slot that was not written: later than any query


class Context(NamedTuple):
    """Where each query stands: what all layers of one forward pass share.

    Attributes:
      positions: int32 [B, L], position of each token within its document.
      segments: int32 [B, L] or None; tokens see only their own segment, 0 is padding.
      angles: mixer → cos and sin of its rotary positions; empty where none rotates.
      prefix: bool [B, L] or None, tokens that all tokens of their segment see.
    """

    positions: jnp.ndarray
    segments: jnp.ndarray | None
    angles: Mapping[str, tuple[jnp.ndarray, jnp.ndarray]]
    prefix: jnp.ndarray | None = None


class Attention(nn.Module):
    """softmax(q·kᵀ/√H)·v per head (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    N query heads share K key/value heads (Ainslie et al. 2023, arXiv:2305.13245).
    `mixer` is its name in the pattern: a 'window' layer limits a query to the last
    `window` tokens, itself included, a 'nope' layer rotates nothing. Without a cache
    a query sees the earlier tokens of its row and those of a prefix, or all that the
    window leaves where attention is bidirectional; with one, `cache` is of keys, values
    [layers, B, K, S, H] where slot = position mod S, and this layer's plane is `layer`;
    heads come before slots so that a step's products need no transposed copy of it.
    Returns the output [B, L, D] and the cache (None when there was none).
    """

    config: Architecture
    mixer: str = "attention"

    @staticmethod
    def cache_planes(config: Architecture) -> dict[str, tuple[int, int]]:
        """Returns what a cache keeps of a token: name → (heads, size of each)."""
        shape = (config.num_kv_heads, config.head_dim)
        return {"key": shape, "value": shape}

    @nn.compact
    def __call__(self, x_BLD, context: Context, cache=None, layer=None):
        c = self.config
        query, key, value = self._project(x_BLD, context)
        if c.attention_scale is not None:  # `kernels.attention` divides by sqrt(H)
            factor = c.attention_scale * math.sqrt(c.head_dim)
            query = (query.astype(jnp.float32) * factor).astype(query.dtype)
        if cache is None:
            index = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)[None]
            query_index = key_index = jnp.broadcast_to(index, x_BLD.shape[:2])
            segments, prefix = context.segments, context.prefix
        else:
            cache = write_cache(cache, layer, context, key=key, value=value)
            key, value = (
                cache[name][layer].transpose(0, 2, 1, 3) for name in ("key", "value")
            )
            query = query.astype(key.dtype)
            query_index = context.positions
            key_index = slot_positions(context, key.shape[1])
            segments, prefix = None, prefix_slots(context, key_index)
        out_BLNH = kernels.attention(
            query,
            key,
            value,
            form=kernels.select_form(c.kernels),
            query_index_BL=query_index,
            key_index_BS=key_index,
            query_segments_BL=segments,
            key_segments_BS=segments,
            causal=c.attention != "bidirectional",
            prefix_BS=prefix,
            window=c.window if self.mixer == "window" else None,
            softcap=c.attention_softcap,
            sinks_N=self._sinks(),
            alibi_slopes_N=slopes(c),
            softmax_dtype=jnp.dtype(c.softmax_dtype),
        )
        out_BLNH = nn.with_logical_constraint(
            out_BLNH, ("batch", "length", "heads", "head_dim")
        )
        out = make_linear(
            c,
            name="out",
            bias=c.biases in ("attention", "all"),
            residual=True,
            inputs=(c.num_heads, c.head_dim),
            outputs=(c.width,),
            axes=("heads", "head_dim", "embed"),
        )(out_BLNH)
        return out, cache

    def _project(self, x_BLD, context: Context):
        """Returns query [B, L, N, H], key and value [B, L, K, H], rotated."""
        c = self.config
        heads = {"query": ("heads", c.num_heads)}
        heads |= dict.fromkeys(("key", "value"), ("kv_heads", c.num_kv_heads))
        layers = [
            make_linear(
                c,
                name=name,
                bias=c.biases != "none",
                inputs=(c.width,),
                outputs=(count, c.head_dim),
                axes=("embed", axis, "head_dim"),
            )
            for name, (axis, count) in heads.items()
        ]
        projected = []
        for (name, (axis, _)), y in zip(
            heads.items(), together(layers, x_BLD), strict=True
        ):
            y = nn.with_logical_constraint(y, ("batch", "length", axis, "head_dim"))
            if c.qk_norm and name != "value":
                y = self._normalised(y, name)
            projected.append(y)
        query, key, value = projected
        if self.mixer in context.angles:
            angles, form = context.angles[self.mixer], kernels.select_form(c.kernels)
            query, key = (rotate_first(x, *angles, form=form) for x in (query, key))
        return query, key, value

    def _sinks(self):
        """Returns each head's score for attending to nothing, [N], if there is one."""
        c = self.config
        if c.attention_sinks is None:
            return None
        return parameter(
            self,
            "sinks",
            shape=(c.num_heads,),
            axes=("heads",),
            init=nn.initializers.zeros,
            dtype=jnp.dtype(c.param_dtype),
        )

    def _normalised(self, y_BLNH, name: str):
        """Returns queries or keys normalised, head by head or all heads at once."""
        c = self.config
        whole = c.qk_norm == "rmsnorm_all_heads"
        kind = "rmsnorm" if whole else str(c.qk_norm)
        norm = make_norm(kind, c, name=f"{name}_norm", axis="head_dim")
        if not whole:
            return norm(y_BLNH)
        return norm(y_BLNH.reshape(*y_BLNH.shape[:2], -1)).reshape(y_BLNH.shape)


def slopes(config: Architecture):
    """Returns the ALiBi slopes of the heads, [N], or None where there are none."""
    if config.positions != "alibi":
        return None
    return jnp.asarray(alibi_slopes(config.num_heads))


def rotate_first(x_BLNH, cos, sin, *, form: str):
    """Returns x with its first dimensions turned, as many as the angles are for."""
    R, H = cos.shape[-1], x_BLNH.shape[-1]
    if R == H:
        return kernels.rotate(x_BLNH, cos, sin, form=form)
    turned = kernels.rotate(x_BLNH[..., :R], cos, sin, form=form)
    return jnp.concatenate([turned, x_BLNH[..., R:]], axis=-1)


def write_cache(cache, layer, context: Context, **planes):
    """Returns the cache with `planes` [B, L, K, H] of tokens in the slots of positions.

    Slot = position mod slots. Tokens of segment 0 are dropped: in a ring they would
    take the slots of real ones.
    """
    written = {}
    for name, x_BLKH in planes.items():
        plane = cache[name]
        S = plane.shape[3]
        slots_BL = context.positions % S
        if context.segments is not None:
            slots_BL = jnp.where(context.segments == 0, S, slots_BL)
        rows = jnp.arange(slots_BL.shape[0])[:, None, None]
        heads = jnp.arange(x_BLKH.shape[2])
        at = (layer, rows, heads, slots_BL[:, :, None])
        written[name] = plane.at[at].set(x_BLKH.astype(plane.dtype), mode="drop")
    return written


def slot_positions(context: Context, slots: int):
    """Returns the position that each slot holds, int32 [B, S], or NEVER.

    A row is written without gaps, so a slot holds the latest position that falls on it.
    """
    positions_BL = context.positions
    if context.segments is not None:
        positions_BL = jnp.where(context.segments == 0, -1, positions_BL)
    last_B1 = positions_BL.max(axis=1, keepdims=True)
    slot_S = jnp.arange(slots, dtype=jnp.int32)
    held_BS = last_B1 - (last_B1 - slot_S) % slots
    return jnp.where(held_BS < 0, NEVER, held_BS)


def prefix_slots(context: Context, position_BS):
    """Returns which slots, of which the positions are given, all tokens see, or None.

    They are those of a prefix that is written in one piece, to the slots from 0 on.
    """
    if context.prefix is None:
        return None
    end_BL = jnp.where(context.prefix, context.positions + 1, 0)
    return position_BS < end_BL.max(axis=1, keepdims=True)
