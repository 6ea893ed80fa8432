"""Distillation: a model learns the distributions of a teacher (Hinton et al. 2015,
arXiv:1503.02531), on the text that it reads.

The teacher runs beside it, in the step. What is learned from samples of a teacher
instead (Kim and Rush 2016, arXiv:1606.07947) is plain training on their text.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture
from lmx.core.schema import ObjectiveConfig
from lmx.finetune.divergence import Scores, divergence, divergence_of_best
from lmx.inputs.batch import Batch
from lmx.models.checks import check_causal
from lmx.models.decoder import Decoder, head_matrix
from lmx.models.kernels import select_form
from lmx.training.losses import cross_entropy, vocabulary_pieces
from lmx.training.objective import (
    Against,
    Compared,
    Losses,
    hidden_states,
    router_loss,
)


class Distill:
    """temperature² · KL, of teacher and model at that temperature, for every token.

    'forward' is KL(teacher ‖ model), 'reverse' KL(model ‖ teacher) (Gu et al. 2023,
    arXiv:2306.08543). `label_weight` of the loss is the cross-entropy of the text.
    """

    group = 1
    against: Against | None = "teacher"
    reads = ("teacher", "divergence", "temperature", "top_k", "label_weight")

    def __init__(
        self, model: Architecture, config: ObjectiveConfig, teacher: Architecture
    ):
        check_causal(model, "objective.name='distill'")
        check_causal(teacher, "objective.teacher")
        _check(config, model, teacher)
        self.config = config
        self.decoder, self.teacher = Decoder(model), Decoder(teacher)
        self.chunks = vocabulary_pieces(model.vocab_size, config.vocab_chunks)

    def __call__(self, params: Compared, batch: Batch) -> Losses:
        config = self.config
        student, router = _scores(self.decoder, params.trained, batch)
        taught, _ = _scores(self.teacher, params.reference, batch)
        taught = taught._replace(
            hidden=jax.lax.stop_gradient(taught.hidden),
            head=jax.lax.stop_gradient(taught.head),
        )
        shape = batch.targets.shape
        kl_BL = self._divergence(student, taught).reshape(shape)
        form = select_form(self.decoder.config.kernels)
        nll_T, _ = cross_entropy(
            student.hidden,
            student.head,
            batch.targets.reshape(-1),
            chunks=self.chunks,
            softcap=student.softcap,
            form=form,
        )
        nll_BL = nll_T.reshape(shape)
        values_BL = (1 - config.label_weight) * config.temperature**2 * kl_BL
        if config.label_weight:
            values_BL = values_BL + config.label_weight * nll_BL
        metrics = {"loss": nll_BL, "kl": kl_BL}
        if router is not None:
            values_BL += router_loss(config, router)
            metrics["load_balance"] = router.balance
        return Losses(values_BL, batch.loss_weights, metrics)

    def _divergence(self, student: Scores, taught: Scores) -> jax.Array:
        config = self.config
        how: dict[str, Any] = {
            "chunks": self.chunks,
            "temperature": config.temperature,
            "form": select_form(self.decoder.config.kernels),
        }
        if config.top_k is not None:
            return divergence_of_best(student, taught, count=config.top_k, **how)
        return divergence(student, taught, direction=config.divergence, **how)


def _scores(decoder: Decoder, params: Any, batch: Batch) -> tuple[Scores, Any]:
    """Returns what logits of all tokens are made of, and the losses of routers."""
    dtype = jnp.dtype(decoder.config.compute_dtype)
    hidden_BLD, router = hidden_states(decoder, params, batch)
    hidden_TD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]).astype(dtype)
    head_VD = head_matrix(params).astype(dtype)
    return Scores(hidden_TD, head_VD, decoder.config.logit_softcap), router


def _check(config: ObjectiveConfig, model: Architecture, teacher: Architecture) -> None:
    if teacher.vocab_size != model.vocab_size:
        raise UserError(
            f"objective.teacher={config.teacher} has a vocabulary of "
            f"{teacher.vocab_size:,} and this model one of {model.vocab_size:,}: their "
            f"logits are not of the same tokens; set model.vocab_size to the teacher's"
        )
    if not config.temperature > 0:
        raise UserError(f"objective.temperature={config.temperature} must be above 0")
    if not 0 <= config.label_weight < 1:
        raise UserError(
            f"objective.label_weight={config.label_weight} must be at least 0 and "
            "below 1, where nothing is learned of the teacher"
        )
    if config.top_k is None:
        return
    if not 1 < config.top_k <= model.vocab_size:
        raise UserError(
            f"objective.top_k={config.top_k} must lie in 2..{model.vocab_size:,} (the "
            "vocabulary), or be None for all logits"
        )
    if config.divergence == "reverse":
        raise UserError(
            f"objective.top_k={config.top_k} leaves the teacher without a probability "
            "for other tokens, which divergence='reverse' needs; set one of them back"
        )
