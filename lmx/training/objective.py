"""What is minimised: from parameters and a batch to a loss for every token.

An objective is a callable `(params, batch) -> Losses`. It never averages: the step
divides by the weight of the whole global batch, once, so that neither gradient
accumulation nor packing nor the mesh can change the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

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


class Losses(NamedTuple):
    """Unreduced losses.

    Attributes:
      values: float32 [B, L], what the gradient is taken of.
      weights: float32 [B, L], 0 where a token does not count.
      metrics: name → float32 [B, L], averaged with the same weights and logged.
    """

    values: jnp.ndarray
    weights: jnp.ndarray
    metrics: Mapping[str, jnp.ndarray]


class Objective(Protocol):
    """A loss over a batch.

    Attributes:
      group: how many successive segments of a row it compares: pairs are 2.
    """

    group: int

    def __call__(self, params: Any, batch: Batch) -> Losses: ...


class NextToken:
    """Cross-entropy of the next token, plus z_loss · log²Z (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5), plus the losses of routers where there are any.
    """

    group = 1

    def __init__(self, model: Architecture, config: ObjectiveConfig):
        check_causal(model, "objective.name='next_token'")
        self.model = model
        self.config = config
        self.decoder = Decoder(model)

    def __call__(self, params: Any, batch: Batch) -> Losses:
        hidden_BLD: Any
        hidden_BLD, sown = self.decoder.apply(
            {"params": params},
            batch.tokens,
            positions=batch.positions,
            segment_ids=batch.segment_ids,
            prefix=prompts(batch) if self.model.attention == "prefix" else None,
            mutable=["router"],
        )
        dtype = jnp.dtype(self.model.compute_dtype)
        nll_T, log_z_T = cross_entropy(
            hidden_BLD.reshape(-1, hidden_BLD.shape[-1]).astype(dtype),
            head_matrix(params).astype(dtype),
            batch.targets.reshape(-1),
            chunks=self.config.vocab_chunks,
            softcap=self.model.logit_softcap,
            form=select_form(self.model.kernels),
        )
        nll_BL = nll_T.reshape(batch.targets.shape)
        penalty_BL = jnp.square(log_z_T).reshape(batch.targets.shape)
        values_BL = nll_BL + self.config.z_loss * penalty_BL
        metrics = {"loss": nll_BL}
        if sown:
            router: RouterLosses = sown["router"]["losses"]
            values_BL += self.config.load_balance_loss * router.balance
            values_BL += self.config.router_z_loss * router.z
            metrics["load_balance"] = router.balance
        return Losses(values_BL, batch.loss_weights, metrics)


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
        remedy = "build it with format='preference'"
    found = "groups of" if count > 1 else "single ones, not groups of"
    raise UserError(
        f"objective.name={name!r} does not take the examples of source {source!r}, "
        f"{found} {max(count, objective.group)}: {remedy}, or leave it out of the store"
    )


OBJECTIVES = {"next_token": NextToken}
