"""What is minimised: from parameters and a batch to a loss for every token, or pair.

An objective is a callable `(params, batch) -> Losses`. It never averages: the step
divides by the weight of the whole global batch, once, so that neither gradient
accumulation nor packing nor the mesh can change the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture
from lmx.core.schema import ObjectiveConfig
from lmx.inputs.batch import Batch
from lmx.models.checks import check_causal
from lmx.models.decoder import Decoder, head_matrix
from lmx.models.kernels import select_form
from lmx.models.moe import RouterLosses
from lmx.training.losses import cross_entropy

Against = Literal["start", "teacher"]


class Losses(NamedTuple):
    """Unreduced losses of the N things in a row that count: its tokens, or its pairs.

    Attributes:
      values: float32 [B, N], what the gradient is taken of.
      weights: float32 [B, N], 0 where there is nothing, or it does not count.
      metrics: name → float32 [B, N], averaged with the same weights and logged.
    """

    values: jnp.ndarray
    weights: jnp.ndarray
    metrics: Mapping[str, jnp.ndarray]


class Compared(NamedTuple):
    """The parameters of an objective that compares two models."""

    trained: Any
    """Those that the gradient is of."""
    reference: Any
    """Those that stay: of the model that training starts from, or of a teacher."""


class Objective(Protocol):
    """A loss over a batch.

    Attributes:
      group: how many successive segments of a row it compares: pairs are 2.
      against: which model it compares the one that trains with, None for none; if any,
        `params` are `Compared`.
      reads: the keys of `ObjectiveConfig` that it reads, beside those that all do.
    """

    group: int
    against: Against | None
    reads: tuple[str, ...]

    def __call__(self, params: Any, batch: Batch) -> Losses: ...


class Predictions(NamedTuple):
    """What a model says of the targets of a batch.

    Attributes:
      nll: float32 [B, L], −log p of each target.
      log_z: float32 [B, L].
      router: the losses of its routers, [B, L] each; None where there are none.
    """

    nll: jnp.ndarray
    log_z: jnp.ndarray
    router: RouterLosses | None


def prompts(batch: Batch) -> jnp.ndarray:
    """Returns which tokens are of a prompt: bool [B, L].

    They are those of a document, or of what a row holds of it, before its first target
    with a loss: the token that predicts it is the last. Of a document without a masked
    token that is its first token alone.
    """
    learned_BL = (batch.loss_weights > 0).astype(jnp.int32)
    before_BL = jnp.cumsum(learned_BL, axis=1) - learned_BL
    segment_BL = batch.segment_ids
    starts_BL = jnp.diff(segment_BL, axis=1, prepend=-1) != 0
    # What came before the document: counts only rise, so the last start has the most.
    other_BL = lax.cummax(jnp.where(starts_BL, before_BL, 0), axis=1)
    return (before_BL == other_BL) & (segment_BL != 0)


def hidden_states(
    decoder: Decoder, params: Any, batch: Batch
) -> tuple[jnp.ndarray, RouterLosses | None]:
    """Returns the final states [B, L, D], and the losses of routers if there are."""
    hidden_BLD: Any
    hidden_BLD, sown = decoder.apply(
        {"params": params},
        batch.tokens,
        positions=batch.positions,
        segment_ids=batch.segment_ids,
        prefix=prompts(batch) if decoder.config.attention == "prefix" else None,
        mutable=["router"],
    )
    return hidden_BLD, sown["router"]["losses"] if sown else None


def predict(
    decoder: Decoder, params: Any, batch: Batch, *, chunks: int | None
) -> Predictions:
    """Returns the loss of every target, computed in `chunks` of the vocabulary."""
    model = decoder.config
    hidden_BLD, router = hidden_states(decoder, params, batch)
    dtype = jnp.dtype(model.compute_dtype)
    nll_T, log_z_T = cross_entropy(
        hidden_BLD.reshape(-1, hidden_BLD.shape[-1]).astype(dtype),
        head_matrix(params).astype(dtype),
        batch.targets.reshape(-1),
        chunks=chunks,
        softcap=model.logit_softcap,
        form=select_form(model.kernels),
    )
    shape = batch.targets.shape
    return Predictions(nll_T.reshape(shape), log_z_T.reshape(shape), router)


def router_loss(config: ObjectiveConfig, router: RouterLosses) -> jnp.ndarray:
    """Returns what the routers add to the loss of each token, [B, L]."""
    return config.load_balance_loss * router.balance + config.router_z_loss * router.z


class NextToken:
    """Cross-entropy of the next token, plus z_loss · log²Z (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5), plus the losses of routers where there are any.
    """

    group = 1
    against: Against | None = None
    reads = ("z_loss",)

    def __init__(self, model: Architecture, config: ObjectiveConfig):
        check_causal(model, "objective.name='next_token'")
        self.config = config
        self.decoder = Decoder(model)

    def __call__(self, params: Any, batch: Batch) -> Losses:
        config = self.config
        nll_BL, log_z_BL, router = predict(
            self.decoder, params, batch, chunks=config.vocab_chunks
        )
        values_BL = nll_BL + config.z_loss * jnp.square(log_z_BL)
        metrics = {"loss": nll_BL}
        if router is not None:
            values_BL += router_loss(config, router)
            metrics["load_balance"] = router.balance
        return Losses(values_BL, batch.loss_weights, metrics)


READ_BY_ALL = ("name", "load_balance_loss", "router_z_loss", "vocab_chunks")


def check_options(objective: type[Any], config: ObjectiveConfig) -> None:
    """Raises a `UserError` for an option that is set and that `objective` ignores."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in (*READ_BY_ALL, *objective.reads) or value == field.default:
            continue
        raise UserError(
            f"objective.{field.name}={value!r} is not read by objective.name="
            f"{config.name!r}; leave it at {field.default!r}"
        )


def check_groups(objective: Objective, groups: Mapping[str, int], *, name: str) -> None:
    """Raises a `UserError` unless the examples of all sources are what it compares.

    `groups` says of each source how many examples belong together, `name` is that of
    the objective.
    """
    wrong = {source: n for source, n in groups.items() if n != objective.group}
    if not wrong:
        return
    source, count = next(iter(wrong.items()))
    if objective.group == 1:
        remedy = (
            "it would learn to write the rejected ones too; build the source as "
            "format='prompt_completion' with fields={'completion': '{chosen}'}"
        )
    else:
        remedy = "build it of pairs, with format='preference'"
    found = "groups of" if count > 1 else "single ones, not groups of"
    raise UserError(
        f"objective.name={name!r} does not take the examples of source {source!r}, "
        f"{found} {max(count, objective.group)}: {remedy}, or leave it out of the store"
    )
