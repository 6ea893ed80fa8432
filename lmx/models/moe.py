"""A mixture of experts: a router chooses, for each token, the MLPs that work on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmx.core.errors import pick
from lmx.core.model_schema import Architecture
from lmx.models import kernels
from lmx.models.attention import Context
from lmx.models.grouped import grouped_matmul
from lmx.models.linear import Linear
from lmx.models.mlp import MLP, MLPS
from lmx.models.parameters import parameter
from lmx.models.positions import documents


class RouterLosses(NamedTuple):
    """What a router is trained by, beside the loss of the tokens it sends; per token.

    Attributes:
      balance: float32 [B, L], its mean over a document is 1 where experts get equal
        shares (Fedus et al. 2021, arXiv:2101.03961, eq. 4, within each document as in
        DeepSeek-V3, arXiv:2412.19437, eq. 17).
      z: float32 [B, L], log²Z of the router's logits (Zoph et al. 2022,
        arXiv:2202.08906, eq. 5).
    """

    balance: jnp.ndarray
    z: jnp.ndarray


def dropless(config: Architecture) -> Architecture:
    """Returns `config` with room for every token in its experts.

    Which tokens find an expert full depends on all of a row and on its padding: only
    training, which counts on whole rows, may drop them.
    """
    return dataclasses.replace(config, expert_capacity=None)


class MoE(nn.Module):
    """Σ weight · expert(x) over the chosen experts (Shazeer et al. 2017, 1701.06538).

    Maps [B, L, D] to [B, L, D] and `RouterLosses`. Without `expert_capacity` every
    token reaches all its experts, in any batch. With it an expert takes so many tokens
    of a row and those that come later pass it by (Lepikhin et al. 2020, 2006.16668).
    """

    config: Architecture

    @nn.compact
    def __call__(self, x_BLD: jnp.ndarray, context: Context):
        c = self.config
        logits_BLE, choice_E = self._router(x_BLD)
        weights_BLK, chosen_BLK, scores_BLE = route(c, logits_BLE, choice_E)
        experts = self._experts()
        if c.expert_capacity is None:
            out_BLD = _dropless(c, experts, x_BLD, weights_BLK, chosen_BLK)
        else:
            room = math.ceil(c.expert_capacity * chosen_BLK[0].size / c.num_experts)
            out_BLD = _with_capacity(
                c, experts, x_BLD, weights_BLK, chosen_BLK, room, context.segments
            )
        if c.shared_experts:
            hidden = c.shared_experts * c.expert_dim
            shared = MLP(c, hidden_dim=hidden, name="shared")(x_BLD)
            out_BLD = out_BLD + shared.astype(out_BLD.dtype)
        losses = RouterLosses(
            balance=_balance(scores_BLE, chosen_BLK, context.segments),
            z=jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)),
        )
        return out_BLD.astype(c.residual_dtype), losses

    def _router(self, x_BLD):
        """Returns float32 logits [B, L, E], and what is added to choose by, [E]."""
        c = self.config
        logits_BLE = Linear(
            inputs=(c.width,),
            outputs=(c.num_experts,),
            axes=("embed", "router"),
            bias=c.biases == "all",
            init_scale=c.init_scale,
            param_dtype=jnp.dtype(c.param_dtype),
            dtype=jnp.dtype("float32"),
            form=kernels.select_form(c.kernels),
            name="router",
        )(x_BLD)
        if not c.router.startswith("sigmoid"):
            return logits_BLE, None
        return logits_BLE, parameter(
            self,
            "choice_bias",
            shape=(c.num_experts,),
            axes=("router",),
            init=nn.initializers.zeros,
            dtype=jnp.dtype(c.param_dtype),
        )

    def _experts(self) -> Callable:
        """Returns the function of all experts: (rows, product) → rows."""
        c = self.config
        activation = pick(MLPS, c.mlp, "mlp")
        into = partial(
            ExpertLinear, c, c.width, c.expert_dim, ("embed", "mlp"), c.init_scale
        )
        names = ("gate", "up") if activation.gated else ("up",)
        ins = [into(name=f"experts_{name}") for name in names]
        scale = c.init_scale / math.sqrt(2 * c.num_layers)
        down = ExpertLinear(
            c, c.expert_dim, c.width, ("mlp", "embed"), scale, name="experts_down"
        )

        def apply(x, multiply):
            hidden = activation.function(*(linear(x, multiply) for linear in ins))
            return down(hidden.astype(c.compute_dtype), multiply)

        return apply


class ExpertLinear(nn.Module):
    """A linear layer for each expert; who multiplies which rows is not its business.

    `multiply(x, kernel [E, I, O], bias [E, O] or None)` does; float32 comes out.
    """

    config: Architecture
    inputs: int
    outputs: int
    axes: tuple[str, str]
    init_scale: float

    @nn.compact
    def __call__(self, x, multiply):
        c = self.config
        make = partial(parameter, self, dtype=jnp.dtype(c.param_dtype))
        kernel = make(
            "kernel",
            shape=(c.num_experts, self.inputs, self.outputs),
            axes=("experts", *self.axes),
            init=nn.initializers.normal(self.init_scale),
        )
        bias = None
        if c.biases == "all":
            bias = make(
                "bias",
                shape=(c.num_experts, self.outputs),
                axes=("experts", self.axes[1]),
                init=nn.initializers.zeros,
            )
        return multiply(x, kernel, bias)


def route(c: Architecture, logits_BLE, choice_E=None):
    """Returns weights [B, L, K] and numbers of the chosen experts, and all scores.

    Groups of experts are chosen first where there are any: by their best score
    (DeepSeek-V2, arXiv:2405.04434), or with 'sigmoid' by the sum of their best two
    (DeepSeek-V3).
    """
    sigmoid = c.router.startswith("sigmoid")
    score = jax.nn.sigmoid if sigmoid else jax.nn.softmax
    scores_BLE = score(logits_BLE)
    choice_BLE = scores_BLE if choice_E is None else scores_BLE + choice_E
    if c.expert_groups > 1:
        grouped = choice_BLE.reshape(*choice_BLE.shape[:-1], c.expert_groups, -1)
        best = jax.lax.top_k(grouped, 2 if sigmoid else 1)[0].sum(axis=-1)
        _, kept = jax.lax.top_k(best, c.expert_groups_kept)
        keep = jax.nn.one_hot(kept, c.expert_groups, dtype=bool).any(axis=-2)
        grouped = jnp.where(keep[..., None], grouped, -jnp.inf)
        choice_BLE = grouped.reshape(choice_BLE.shape)
    _, chosen_BLK = jax.lax.top_k(choice_BLE, c.experts_per_token)
    weights_BLK = jnp.take_along_axis(scores_BLE, chosen_BLK, axis=-1)
    if c.router.endswith("_renormalized"):
        weights_BLK /= weights_BLK.sum(axis=-1, keepdims=True) + 1e-20
    return weights_BLK * c.router_scale, chosen_BLK, scores_BLE


def _dropless(c: Architecture, experts, x_BLD, weights_BLK, chosen_BLK):
    """Returns Σ weight · expert(x), rows sorted by expert for grouped products."""
    K, D = chosen_BLK.shape[-1], x_BLD.shape[-1]
    chosen_R = chosen_BLK.reshape(-1)
    order_R = jnp.argsort(chosen_R, stable=True)
    sizes_E = jnp.bincount(chosen_R, length=c.num_experts).astype(jnp.int32)

    def multiply(x_RI, kernel, bias):
        y_RO = grouped_matmul(
            x_RI,
            kernel,
            sizes_E,
            form=kernels.select_form(c.kernels),
            out_dtype=jnp.float32,
        )
        return y_RO if bias is None else y_RO + bias[chosen_R[order_R]]

    x_TD = x_BLD.reshape(-1, D).astype(c.compute_dtype)
    y_RD = experts(x_TD[order_R // K], multiply)
    y_TKD = y_RD[jnp.argsort(order_R)].reshape(-1, K, D)
    return (y_TKD * weights_BLK.reshape(-1, K, 1)).sum(axis=1).reshape(x_BLD.shape)


def _with_capacity(c, experts, x_BLD, weights_BLK, chosen_BLK, room: int, segments_BL):
    """Returns Σ weight · expert(x) over the first `room` tokens of a row per expert.

    A token of a row that finds its expert full gets nothing of it; padding asks none.
    Experts may lie on other devices than rows: the two exchange [B, E, C, D].
    """
    B, L, K = chosen_BLK.shape
    E, C, D = c.num_experts, room, x_BLD.shape[-1]
    asks_BRE = jax.nn.one_hot(chosen_BLK.reshape(B, L * K), E, dtype=jnp.int32)
    if segments_BL is not None:
        real_BR1 = jnp.repeat(segments_BL != 0, K, axis=1)[..., None]
        asks_BRE = asks_BRE * real_BR1
    place_BRE = jnp.cumsum(asks_BRE, axis=1) - 1
    place_BR = jnp.take_along_axis(place_BRE, chosen_BLK.reshape(B, L * K, 1), axis=-1)[
        ..., 0
    ]
    fits_BR = (asks_BRE.sum(axis=-1) > 0) & (place_BR < C)
    slot_BR = jnp.where(fits_BR, chosen_BLK.reshape(B, L * K) * C + place_BR, E * C)
    rows = jnp.arange(B)[:, None]
    # Which token is in each slot; the one after the last is a row of zeros.
    token_BS = (
        jnp.full((B, E * C), L)
        .at[rows, slot_BR]
        .set(jnp.arange(L * K)[None] // K, mode="drop")
    )
    x_BLD = x_BLD.astype(c.compute_dtype)
    padded = jnp.pad(x_BLD, ((0, 0), (0, 1), (0, 0)))
    x_BECD = padded[rows, token_BS].reshape(B, E, C, D)

    def multiply(x_BECI, kernel, bias):
        x_BECI = nn.with_logical_constraint(
            x_BECI, ("expert_batch", "experts", None, None)
        )
        form = kernels.select_form(c.kernels)
        y = kernels.einsum("BECI,EIO->BECO", x_BECI, kernel, form=form)
        y = y.astype(jnp.float32)
        return y if bias is None else y + bias[:, None]

    y_BECD = experts(x_BECD, multiply)
    y_BSD = jnp.pad(y_BECD.reshape(B, E * C, D), ((0, 0), (0, 1), (0, 0)))
    y_BLKD = y_BSD[rows, slot_BR].reshape(B, L, K, D)
    return (y_BLKD * weights_BLK[..., None]).sum(axis=2)


def _balance(scores_BLE, chosen_BLK, segments_BL):
    """Returns, per token, E · Σ_e (share of its document that chose e) · p(e).

    Only p has a gradient. Its mean over a document is E · Σ_e f_e · P_e. Documents, not
    batches, so that packing, accumulation and meshes change nothing.
    """
    B, L, E = scores_BLE.shape
    p_BLE = scores_BLE / scores_BLE.sum(axis=-1, keepdims=True)
    asks_BLE = jax.nn.one_hot(chosen_BLK, E).sum(axis=2) / chosen_BLK.shape[-1]
    first_BL, last_BL = documents(segments_BL, (B, L))
    upto_BLE = jnp.pad(jnp.cumsum(asks_BLE, axis=1), ((0, 0), (1, 0), (0, 0)))
    rows = jnp.arange(B)[:, None]
    total_BLE = upto_BLE[rows, last_BL + 1] - upto_BLE[rows, first_BL]
    share_BLE = total_BLE / (last_BL - first_BL + 1)[..., None]
    return E * (jax.lax.stop_gradient(share_BLE) * p_BLE).sum(axis=-1)
