"""The decoder: tokens in, through embedding, blocks and a norm, hidden states out.

It knows no mesh, no loss and no file. `head_logits` turns hidden states into logits;
training never calls it on a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.attention import Context
from lmx.models.block import MIXERS, Block, Layer
from lmx.models.norms import make_norm
from lmx.models.parameters import parameter
from lmx.models.positions import BY_LENGTH, document_lengths, rotary_angles
from lmx.models.wrapped import Layered

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
REWARD_HEAD = "reward_head"  # the parameter that weighs final states, [D]
UNROLLED_ON_CPU = 12  # deeper stacks compile too slowly for what unrolling gains


class Period(nn.Module):
    """The blocks of one repetition of the layer pattern: the body of the scan."""

    config: Architecture
    pattern: tuple[Layer, ...]

    @nn.compact
    def __call__(self, carry, layer, context: Context):
        x_BLD, cache = carry
        written, losses = {}, {}
        applied: dict[Layer, Callable] = {}
        for i, kind in enumerate(self.pattern):
            name = str(i)
            if cache is None:
                block = Block(self.config, kind, name=name)
                x_BLD, _, losses[name] = block(x_BLD, context)
                continue
            # Decoding spells all layers out: those of a kind are traced once.
            if kind not in applied:
                applied[kind] = jax.jit(Block(self.config, kind, parent=None).apply)
            params = {"params": self.variables["params"][name]}
            x_BLD, written[name], losses[name] = applied[kind](
                params, x_BLD, context, cache[name], layer
            )
        return (x_BLD, None if cache is None else written), losses


class Decoder(nn.Module):
    """A transformer over a resolved `ModelConfig`: causal, prefix, or an encoder.

    `apply({"params": p}, tokens)` maps int32 [B, L] to hidden states [B, L, D].
    `positions` (int32 [B, L]) default to 0..L−1 and `segment_ids` keep packed
    documents apart. With `cache` (from `init_cache`) the keys and values of `tokens`
    are written at their positions, queries see all up to their own position, and
    the result is (hidden states, cache).
    `lengths` (int32 [B]) are what the documents of the rows grow to, for rotary
    scalings that go by it; by default they end where the tokens do. `prefix` (bool
    [B, L]), for 'prefix' attention, are the tokens of prompts, which all of their
    document see; into a cache a prompt is written in one call. With
    `mutable=["router"]`, router/losses are the means over layers of `RouterLosses`.
    """

    config: Architecture

    @nn.compact
    def __call__(
        self,
        tokens_BL,
        *,
        positions=None,
        segment_ids=None,
        cache=None,
        lengths=None,
        prefix=None,
    ):
        c = self.config
        assert cache is None or c.attention != "bidirectional", c.attention
        assert prefix is None or c.attention == "prefix", c.attention
        if positions is None:
            row = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
            positions = jnp.broadcast_to(row, tokens_BL.shape)
        context = Context(
            positions, segment_ids, _angles(c, positions, segment_ids, lengths), prefix
        )
        x_BLD = self._embed(tokens_BL, positions)
        written: dict[str, Any] = {}
        losses = []
        for name, pattern, repeats in stacks(c):
            carry = (x_BLD, None if cache is None else cache[name])
            if unrolled(c) and not self.is_initializing():
                params = unstack(self.variables["params"][name], repeats)
                carry, found = _unroll(c, pattern, params, carry, context)
            else:
                layers = jnp.arange(repeats, dtype=jnp.int32)
                stack = _scan(c, repeats)(c, pattern, name=name)
                carry, found = stack(carry, layers, context)
            x_BLD, written[name] = carry
            losses += [each for each in found.values() if each is not None]
        if losses:  # each [repeats, B, L]
            mean = jax.tree.map(lambda *x: jnp.concatenate(x).mean(axis=0), *losses)
            self.sow("router", "losses", mean, reduce_fn=lambda _, new: new)
        if c.norm_position != "post":
            x_BLD = make_norm(c.norm, c, name="final_norm")(x_BLD)
        return x_BLD if cache is None else (x_BLD, written)

    def _embed(self, tokens_BL, positions_BL):
        c = self.config

        def table(name: str, rows: int, axis: str) -> jnp.ndarray:
            return parameter(
                self,
                name,
                shape=(rows, c.width),
                axes=(axis, "embed"),
                init=nn.initializers.normal(c.init_scale),
                dtype=jnp.dtype(c.param_dtype),
            )

        embedding = table("embedding", c.vocab_size, "vocab")
        # Rows are looked up whole: gather the width first where it is split.
        embedding = nn.with_logical_constraint(embedding, ("vocab", "features"))
        x_BLD = embedding[tokens_BL]
        if c.embedding_scale is not None:
            x_BLD = x_BLD * c.embedding_scale
        if c.positions == "learned":
            rows = table("position_embedding", c.context_length, "position")
            x_BLD = x_BLD + rows[positions_BL]
        if c.token_types is not None:
            x_BLD = x_BLD + table("type_embedding", c.token_types, "token_type")[0]
        if c.head == "untied":
            table("head", c.vocab_size, "vocab")
        if c.reward_head is not None:
            parameter(
                self,
                REWARD_HEAD,
                shape=(c.width,),
                axes=("features",),
                init=nn.initializers.zeros,
                dtype=jnp.dtype(c.param_dtype),
            )
        if c.embedding_norm is not None:
            norm = partial(make_norm, dtype=c.residual_dtype)
            x_BLD = norm(c.embedding_norm, c, name="embedding_norm")(x_BLD)
        x_BLD = x_BLD.astype(c.residual_dtype)
        return nn.with_logical_constraint(x_BLD, ("batch", "length", "features"))


def _angles(config: Architecture, positions_BL, segments_BL, lengths_B):
    """Returns cos and sin for each mixer of the pattern that rotates."""
    if config.positions != "rope":
        return {}
    lengths = None
    if config.rope_scaling in BY_LENGTH:
        lengths = (
            document_lengths(positions_BL, segments_BL)
            if lengths_B is None
            else lengths_B[:, None]
        )
    rotate = partial(rotary_angles, positions_BL, config, lengths=lengths)
    return {m: rotate(mixer=m) for m in sorted({*config.pattern} - {"nope"})}


def layer_kinds(config) -> list[Layer]:
    """Returns what each layer is made of."""
    return [
        Layer(
            config.pattern[i % len(config.pattern)],
            "mlp" if i < config.dense_layers else config.ffns[i % len(config.ffns)],
        )
        for i in range(config.num_layers)
    ]


def stacks(config) -> list[tuple[str, tuple[Layer, ...], int]]:
    """Returns (name, layers of a period, repeats) of what is looped over, in order.

    The dense layers come first, then whole periods, then what is left over.
    """
    kinds, first = layer_kinds(config), min(config.dense_layers, config.num_layers)
    size = math.lcm(len(config.pattern), len(config.ffns))
    periods, left = divmod(config.num_layers - first, size)
    same = len(config.pattern) == 1
    found = [
        ("dense", tuple(kinds[: 1 if same else first]), first if same else 1),
        ("blocks", tuple(kinds[first : first + size]), periods),
        ("tail", tuple(kinds[config.num_layers - left :]), 1),
    ]
    return [(name, kinds, count) for name, kinds, count in found if kinds and count]


def _scan(config: Architecture, repeats: int):
    """Returns `Period` lifted over `repeats` layers, parameters stacked on axis 0."""
    return nn.scan(
        _body(config, prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=repeats,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _unroll(config: Architecture, pattern, params: list, carry, context: Context):
    """Returns the carry after one `Period` for each of `params`, and losses as a scan.

    Under its own jit a period is traced once for a call of this, not once a layer.
    """
    period = _body(config, prevent_cse=True)(config, pattern, parent=None)
    apply = jax.jit(period.apply)
    losses = []
    for i, layer in enumerate(params):
        carry, found = apply({"params": layer}, carry, i, context)
        losses.append(found)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *losses)


def _body(config: Architecture, *, prevent_cse: bool) -> type[nn.Module]:
    """Returns `Period`, recomputing in the backward pass what `remat` says."""
    if config.remat == "none":
        return Period
    policy = REMAT_POLICIES[config.remat]
    return nn.remat(Period, policy=policy, prevent_cse=prevent_cse)


def unstack(tree, count: int) -> list:
    """Returns the `count` slices of a tree whose leaves are stacked on axis 0.

    Its gradient stacks those of the slices, once; that of plain slices would add one
    array of the whole stack's size for each of them. A loop over these is 1.6 times as
    fast on CPU as an unrolled scan, which also stacks what the backward pass needs.
    Of kernels that do not change no slices are made here: they take their own.
    """
    leaves, form = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, Layered))
    changing = [x.changing() if isinstance(x, Layered) else x for x in leaves]
    return [
        jax.tree.unflatten(
            form,
            [
                x.layer(i, part) if isinstance(x, Layered) else part
                for x, part in zip(leaves, parts, strict=True)
            ],
        )
        for i, parts in enumerate(_unstack(changing, count))
    ]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _unstack(tree, count: int) -> list:
    return _unstack_forward(tree, count)[0]


def _unstack_forward(tree, count):
    # Not by `_unstack`: Sophia differentiates this forward, which it could not.
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)], None


def _unstack_backward(count, _, gradients):
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),)


_unstack.defvjp(_unstack_forward, _unstack_backward)


def unrolled(config) -> bool:
    """Returns whether the loop over layers is unrolled, as `layer_loop` says."""
    if config.layer_loop == "auto":
        return jax.default_backend() == "cpu" and config.num_layers <= UNROLLED_ON_CPU
    return config.layer_loop == "unroll"


def init_cache(config, *, batch_size: int, length: int, piece: int, dtype=None):
    """Returns an empty cache: {stack: {i: {plane: [n, B, K, S, H]}}}.

    The planes of a layer, such as key and value, are what its mixer keeps. They serve
    rows of up to `length` tokens, written at most `piece` at a time. A 'window' layer
    has no more slots than a piece and what its first query sees; they are used in turn.
    """
    if kernels.select_form(config.kernels) == "cpu":
        # XLA's CPU compiler widens a whole bfloat16 plane to write one token to it.
        dtype = dtype or jnp.float32
    dtype = jnp.dtype(dtype or config.compute_dtype)

    def planes(mixer: str, repeats: int):
        slots = min(length, config.window + piece) if mixer == "window" else length
        return {
            plane: jnp.zeros((repeats, batch_size, heads, slots, size), dtype)
            for plane, (heads, size) in MIXERS[mixer].cache_planes(config).items()
        }

    return {
        name: {str(i): planes(kind.mixer, repeats) for i, kind in enumerate(pattern)}
        for name, pattern, repeats in stacks(config)
    }


def head_matrix(params) -> jnp.ndarray:
    """Returns the output head [V, D]: its own matrix, or the embedding when tied."""
    return params["head"] if "head" in params else params["embedding"]


def head_logits(config, params, hidden: jnp.ndarray) -> jnp.ndarray:
    """Returns float32 logits [..., V] of hidden states [..., D]."""
    dtype = jnp.dtype(config.compute_dtype)
    logits = kernels.matmul(
        hidden.astype(dtype),
        head_matrix(params).astype(dtype).T,
        form=kernels.select_form(config.kernels),
        out_dtype=jnp.float32,
    )
    return softcap(logits, config.logit_softcap)


def softcap(x: jnp.ndarray, cap: float | None) -> jnp.ndarray:
    """Returns cap · tanh(x / cap), or x for no cap (Gemma 2, arXiv:2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def abstract_params(config):
    """Returns the shapes of all parameters, boxed with logical axes."""
    tokens = jax.ShapeDtypeStruct((1, min(8, config.context_length)), jnp.int32)
    decoder = Decoder(config)
    return jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]


def count_params(config) -> int:
    """Returns the number of parameters of a resolved config."""
    return sum(x.size for x in jax.tree.leaves(nn.meta.unbox(abstract_params(config))))
