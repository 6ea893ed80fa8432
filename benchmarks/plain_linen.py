"""A small GPT as a first script in Flax Linen and optax has it; the slow contender.

LayerNorm, learned positions, gelu, flax's own attention einsums, an optax chain and one
jit: the architecture of minimal decoders such as nanodo, written without a thought for
the backend. Run by `train_throughput.py` as `python plain_linen.py DTYPE`.
"""

from __future__ import annotations

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from train_throughput import BATCH, CONTEXT, HEADS, LAYERS, VOCAB, WIDTH, serve


class Block(nn.Module):
    """Attention and a gelu MLP, each after a norm."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD):
        y_BLD = nn.LayerNorm(dtype=self.dtype, use_bias=False)(x_BLD)
        project = [
            nn.DenseGeneral((HEADS, WIDTH // HEADS), use_bias=False, dtype=self.dtype)
            for _ in range(3)
        ]
        q_BLNH, k_BSNH, v_BSNH = (p(y_BLD) for p in project)
        scores_BNLS = jnp.einsum("BLNH,BSNH->BNLS", q_BLNH, k_BSNH)
        scores_BNLS = scores_BNLS.astype(jnp.float32) / (WIDTH // HEADS) ** 0.5
        causal = jnp.tril(jnp.ones((x_BLD.shape[1],) * 2, bool))
        scores_BNLS = jnp.where(causal, scores_BNLS, jnp.finfo(jnp.float32).min)
        weights_BNLS = nn.softmax(scores_BNLS).astype(self.dtype)
        out_BLNH = jnp.einsum("BNLS,BSNH->BLNH", weights_BNLS, v_BSNH)
        out = nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, dtype=self.dtype)
        x_BLD = x_BLD + out(out_BLNH)
        y_BLD = nn.LayerNorm(dtype=self.dtype, use_bias=False)(x_BLD)
        y_BLF = nn.gelu(nn.Dense(4 * WIDTH, use_bias=False, dtype=self.dtype)(y_BLD))
        return x_BLD + nn.Dense(WIDTH, use_bias=False, dtype=self.dtype)(y_BLF)


class Model(nn.Module):
    """Tokens to logits; the head is the embedding."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens_BL):
        embed = nn.Embed(VOCAB, WIDTH, dtype=self.dtype)
        places = nn.Embed(CONTEXT, WIDTH, dtype=self.dtype)
        x_BLD = embed(tokens_BL) + places(jnp.arange(tokens_BL.shape[1]))[None]
        for _ in range(LAYERS):
            x_BLD = Block(self.dtype)(x_BLD)
        x_BLD = nn.LayerNorm(dtype=self.dtype, use_bias=False)(x_BLD)
        return embed.attend(x_BLD.astype(jnp.float32))


def steps(dtype):
    model = Model(dtype)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1),
    )

    @jax.jit
    def step(params, opt_state, row):
        def loss_of(params):
            logits = model.apply(params, row[:, :-1]).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, row[:, 1:]
            ).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    key = jax.random.key(0)
    params = model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))
    opt_state = optimizer.init(params)
    for i in range(10**9):
        row = jax.random.randint(
            jax.random.fold_in(key, i), (BATCH, CONTEXT + 1), 0, 256
        )
        params, opt_state, loss = step(params, opt_state, row)
        yield loss


if __name__ == "__main__":
    serve(steps(jnp.dtype(sys.argv[1])))
