"""Multi-head latent attention: keys and values out of one short vector per token."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.attention import (
    Context,
    prefix_slots,
    slopes,
    slot_positions,
    write_cache,
)
from lmx.models.linear import make_linear
from lmx.models.norms import make_norm
from lmx.models.parameters import parameter

EPSILON = 1e-6  # of the norms of latents: the authors' code has it fixed


class LatentAttention(nn.Module):
    """Attention whose keys and values are linear in a latent (DeepSeek-V2, 2405.04434).

    A head's query and key have `rope_dim` R rotated dimensions, the key's shared by all
    heads, and head_dim − R plain ones. Without a cache keys and values are expanded for
    each head (section 2.1.2). With one it keeps [layers, B, 1, S, R + C] and the
    projections of keys and values move to the queries and the output, which is the
    same product in another order: all heads then read the latents themselves.
    Returns the output [B, L, D] and the cache.
    """

    config: Architecture
    mixer: str = "latent"

    @staticmethod
    def cache_planes(config: Architecture) -> dict[str, tuple[int, int]]:
        """Returns what a cache keeps of a token: name → (heads, size of each)."""
        assert config.rope_dim is not None
        assert config.kv_latent_dim is not None
        return {"latent": (1, config.rope_dim + config.kv_latent_dim)}

    @nn.compact
    def __call__(self, x_BLD, context: Context, cache=None, layer=None):
        c = self.config
        rotated, plain = self._sizes()
        assert c.kv_latent_dim is not None
        make_key = HeadLinear(c, c.kv_latent_dim, plain, name="key")
        make_value = HeadLinear(c, c.kv_latent_dim, c.value_dim, name="value")
        rope_BLNR, nope_BLNH = self._queries(x_BLD, context)
        latent_BLC, key_BL1R = self._latent(x_BLD, context)
        attend = partial(self._attend, context=context)
        if cache is None:
            key = make_key("BLC,CNH->BLNH", latent_BLC)
            shared = jnp.broadcast_to(key_BL1R, (*key.shape[:3], rotated))
            out_BLNV = attend(
                jnp.concatenate([rope_BLNR, nope_BLNH], axis=-1),
                jnp.concatenate([shared, key], axis=-1),
                make_value("BLC,CNH->BLNH", latent_BLC),
            )
        else:
            both = jnp.concatenate([key_BL1R, latent_BLC[:, :, None]], axis=-1)
            cache = write_cache(cache, layer, context, latent=both)
            seen_BS1 = cache["latent"][layer].transpose(0, 2, 1, 3)
            query = make_key("BLNH,CNH->BLNC", nope_BLNH)
            out_BLNC = attend(
                jnp.concatenate([rope_BLNR, query], axis=-1),
                seen_BS1,
                seen_BS1[..., rotated:],
                cached=True,
            )
            out_BLNV = make_value("BLNC,CNH->BLNH", out_BLNC)
        out = make_linear(
            c,
            name="out",
            bias=c.biases in ("attention", "all"),
            residual=True,
            inputs=(c.num_heads, c.value_dim),
            outputs=(c.width,),
            axes=("heads", "head_dim", "embed"),
        )(out_BLNV)
        return out, cache

    def _queries(self, x_BLD, context: Context):
        """Returns the rotated and the plain dimensions of queries, [B, L, N, ·]."""
        c, name, axis = self.config, "query", "embed"
        if c.query_latent_dim is not None:
            x_BLD = self._down("query_latent", x_BLD, c.query_latent_dim)
            x_BLD = self._normalised("query_latent_norm", x_BLD)
            name, axis = "query_up", "latent"

        def to_heads(part: str, size: int):
            return make_linear(
                c,
                name=f"{name}_{part}",
                bias=False,
                inputs=x_BLD.shape[-1:],
                outputs=(c.num_heads, size),
                axes=(axis, "heads", "head_dim"),
            )(x_BLD)

        rotated, plain = self._sizes()
        return self._rotate(to_heads("rope", rotated), context), to_heads("nope", plain)

    def _sizes(self) -> tuple[int, int]:
        """Returns how many dimensions of a head rotate, and how many do not."""
        c = self.config
        assert c.rope_dim is not None
        return c.rope_dim, c.head_dim - c.rope_dim

    def _latent(self, x_BLD, context: Context):
        """Returns latents [B, L, C] and the heads' common rotated key [B, L, 1, R]."""
        c = self.config
        assert c.kv_latent_dim is not None
        latent_BLC = self._down("latent", x_BLD, c.kv_latent_dim)
        latent_BLC = self._normalised("latent_norm", latent_BLC)
        key_BLR = self._down("key_rope", x_BLD, self._sizes()[0])
        return latent_BLC, self._rotate(key_BLR[:, :, None], context)

    def _normalised(self, name: str, x):
        c = dataclasses.replace(self.config, norm_epsilon=EPSILON)
        return make_norm("rmsnorm", c, name=name, axis="latent")(x)

    def _down(self, name: str, x_BLD, size: int):
        return make_linear(
            self.config,
            name=name,
            bias=False,
            inputs=x_BLD.shape[-1:],
            outputs=(size,),
            axes=("embed", "latent"),
        )(x_BLD)

    def _rotate(self, x, context: Context):
        if self.mixer not in context.angles:
            return x
        form = kernels.select_form(self.config.kernels)
        return kernels.rotate(x, *context.angles[self.mixer], form=form)

    def _attend(self, query, key, value, *, context: Context, cached: bool = False):
        """Returns attention with this layer's scale, whatever size its vectors have."""
        c = self.config
        scale = c.attention_scale or 1 / math.sqrt(c.head_dim)
        # `kernels.attention` divides by the root of the size that it sees.
        factor = scale * math.sqrt(query.shape[-1])
        query = (query.astype(jnp.float32) * factor).astype(key.dtype)
        index = jnp.arange(key.shape[1], dtype=jnp.int32)[None]
        index_BS = jnp.broadcast_to(index, key.shape[:2])
        segments, prefix = context.segments, context.prefix
        if cached:
            index_BS = slot_positions(context, key.shape[1])
            segments, prefix = None, prefix_slots(context, index_BS)
        return kernels.attention(
            query,
            key,
            value,
            form=kernels.select_form(c.kernels),
            query_index_BL=context.positions if cached else index_BS,
            key_index_BS=index_BS,
            query_segments_BL=segments,
            key_segments_BS=segments,
            causal=c.attention != "bidirectional",
            prefix_BS=prefix,
            softcap=c.attention_softcap,
            alibi_slopes_N=slopes(c),
            softmax_dtype=jnp.dtype(c.softmax_dtype),
        )


class HeadLinear(nn.Module):
    """A matrix from latents to each head, applied in the direction that is asked for.

    `subscripts` are those of the einsum of the operand and the kernel [C, N, H].
    """

    config: Architecture
    inputs: int
    size: int

    @nn.compact
    def __call__(self, subscripts: str, x: jnp.ndarray) -> jnp.ndarray:
        c = self.config
        kernel = parameter(
            self,
            "kernel",
            shape=(self.inputs, c.num_heads, self.size),
            axes=("latent", "heads", "head_dim"),
            init=nn.initializers.normal(c.init_scale),
            dtype=jnp.dtype(c.param_dtype),
        ).astype(x.dtype)
        form = kernels.select_form(c.kernels)
        if x.ndim == 3:
            flat = kernels.matmul(x, kernel.reshape(self.inputs, -1), form=form)
            return flat.reshape(*x.shape[:2], c.num_heads, self.size)
        return kernels.einsum(subscripts, x, kernel, form=form)
