"""Objectives that learn which of two completions of a prompt is the better one.

The segments 2k-1 and 2k of a row are chosen and rejected. What they compare is sums of
log-probabilities over each completion; a loss is that of a pair, and pairs are what is
averaged over. Rewards are those that the policy implies; their difference is the
margin, and a pair is right where it is above 0.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture
from lmx.core.schema import ObjectiveConfig
from lmx.finetune.segments import (
    pair_sums,
    segment_sums,
    with_completions_of_others,
)
from lmx.inputs.batch import Batch
from lmx.models.checks import check_causal
from lmx.models.decoder import Decoder
from lmx.training.objective import Against, Compared, Losses, predict, router_loss


class Completions(NamedTuple):
    """What a model says of both completions of each pair, chosen and then rejected.

    Attributes:
      logprobs: float32 [B, P, 2], the sum over the tokens that are learned.
      tokens: float32 [B, P, 2], how many these are.
    """

    logprobs: jax.Array
    tokens: jax.Array

    @property
    def means(self) -> jax.Array:
        """The log-probability of a token, [B, P, 2]."""
        return self.logprobs / jnp.maximum(self.tokens, 1.0)


class Judged(NamedTuple):
    """What an objective makes of pairs.

    Attributes:
      losses: float32 [B, P].
      rewards: float32 [B, P, 2].
    """

    losses: jax.Array
    rewards: jax.Array


class Preference(abc.ABC):
    """What these objectives share; each says in `judge` what it makes of pairs."""

    group = 2
    against: Against | None = "start"
    reads: tuple[str, ...] = ("beta",)
    beta = 0.1

    def __init__(self, model: Architecture, config: ObjectiveConfig):
        check_causal(model, f"objective.name={config.name!r}")
        if config.beta is not None:
            self.beta = config.beta
        if not self.beta > 0:
            raise UserError(
                f"objective.beta={self.beta} must be above 0: at 0 no preference "
                f"counts; None is {type(self).beta}"
            )
        self.config = config
        self.decoder = Decoder(model)

    @abc.abstractmethod
    def judge(
        self, policy: Completions, reference: Completions, baseline_B1: Any = 0.0
    ) -> Judged:
        """Returns loss and rewards of each pair; `baseline_B1` is that of KTO."""

    def baseline(self, params: Any, batch: Batch) -> Any:
        """Returns what rewards of a row are compared with, [B, 1]."""
        return 0.0

    def __call__(self, params: Any, batch: Batch) -> Losses:
        weights_BL, segments_BL = batch.loss_weights, batch.segment_ids
        trained = params.trained if isinstance(params, Compared) else params
        nll_BL, _, router = self._predict(trained, batch)
        tokens_BP2 = pair_sums(weights_BL, segments_BL)
        policy = Completions(-pair_sums(nll_BL * weights_BL, segments_BL), tokens_BP2)
        reference, metrics = policy, {}
        if self.against is not None:
            against_BL = self._reference(params, batch)
            log_ratio_BL = against_BL - nll_BL  # of the policy to the reference
            sums_BP2 = -pair_sums(against_BL * weights_BL, segments_BL)
            reference = Completions(sums_BP2, tokens_BP2)
            kl_BL = jnp.expm1(-log_ratio_BL) + log_ratio_BL
            metrics["kl"] = _per_pair(kl_BL, weights_BL, segments_BL)
        baseline = self.baseline(params, batch)
        losses_BP, rewards_BP2 = self.judge(policy, reference, baseline)
        values_BP = losses_BP
        if router is not None:
            real_BL = jnp.ones_like(weights_BL)
            added_BL = router_loss(self.config, router)
            values_BP = values_BP + _per_pair(added_BL, real_BL, segments_BL)
            metrics["load_balance"] = _per_pair(router.balance, real_BL, segments_BL)
        metrics |= {
            "loss": losses_BP,
            "chosen_logprob": policy.logprobs[..., 0],
            "rejected_logprob": policy.logprobs[..., 1],
            **margin_metrics(rewards_BP2),
        }
        real_BP = jnp.all(tokens_BP2 > 0, axis=-1)
        return Losses(values_BP, real_BP.astype(jnp.float32), metrics)

    def _predict(self, params: Any, batch: Batch):
        chunks = self.config.vocab_chunks
        return predict(self.decoder, params, batch, chunks=chunks)

    def _reference(self, params: Compared, batch: Batch) -> jax.Array:
        """Returns −log p of the reference for every target, [B, L], a constant."""
        reference = jax.lax.stop_gradient(params.reference)
        return jax.lax.stop_gradient(self._predict(reference, batch).nll)


def _per_pair(values_BL, weights_BL, segments_BL) -> jax.Array:
    """Returns the weighted mean over the tokens of each pair, [B, P]."""
    total_BP = pair_sums(values_BL * weights_BL, segments_BL).sum(axis=-1)
    weight_BP = pair_sums(weights_BL, segments_BL).sum(axis=-1)
    return total_BP / jnp.maximum(weight_BP, 1.0)


def margin_metrics(rewards_BP2: jax.Array) -> dict[str, jax.Array]:
    """Returns what is logged of the rewards of pairs, [B, P] each."""
    chosen_BP, rejected_BP = rewards_BP2[..., 0], rewards_BP2[..., 1]
    return {
        "chosen_reward": chosen_BP,
        "rejected_reward": rejected_BP,
        "margin": chosen_BP - rejected_BP,
        "accuracy": (chosen_BP > rejected_BP).astype(jnp.float32),
    }


def margins(rewards_BP2: jax.Array) -> jax.Array:
    """Returns by how much the chosen completion is ahead, [B, P]."""
    return rewards_BP2[..., 0] - rewards_BP2[..., 1]


class Dpo(Preference):
    """−log σ(β · difference of log-ratios) (Rafailov et al. 2023, arXiv:2305.18290).

    With `label_smoothing` ε a share of pairs counts as if the other way round
    (conservative DPO, Mitchell 2023).
    """

    reads = ("beta", "label_smoothing")

    def __init__(self, model: Architecture, config: ObjectiveConfig):
        super().__init__(model, config)
        if not 0 <= config.label_smoothing < 0.5:
            raise UserError(
                f"objective.label_smoothing={config.label_smoothing} must be at least "
                "0 and below 0.5, where labels would say nothing"
            )

    def judge(self, policy, reference, baseline_B1=0.0) -> Judged:
        rewards_BP2 = self.beta * (policy.logprobs - reference.logprobs)
        margin_BP = margins(rewards_BP2)
        wrong = self.config.label_smoothing
        right_BP = jax.nn.log_sigmoid(margin_BP)
        losses_BP = -(1 - wrong) * right_BP - wrong * jax.nn.log_sigmoid(-margin_BP)
        return Judged(losses_BP, rewards_BP2)


class Ipo(Preference):
    """(h − 1/2τ)², h the difference of log-ratios (Azar et al. 2023, 2310.12036, 17).

    Log-ratios are those of a token, the mean over a completion: the paper writes sums,
    but its authors told those of TRL that its results are of means (its pull request
    1265, January 2024; TRL 1.16 too).
    """

    def judge(self, policy, reference, baseline_B1=0.0) -> Judged:
        ratios_BP2 = policy.means - reference.means
        losses_BP = jnp.square(margins(ratios_BP2) - 0.5 / self.beta)
        return Judged(losses_BP, self.beta * ratios_BP2)


class Orpo(Preference):
    """Cross-entropy of the chosen plus λ times that of the odds (Hong et al. 2024,
    arXiv:2403.07691, 6 and 7), both of the mean log-probability of a token.

    It needs no reference. λ is `beta`.
    """

    against = None

    def judge(self, policy, reference, baseline_B1=0.0) -> Judged:
        means_BP2 = jnp.minimum(policy.means, -1e-6)  # there are no odds of certainty
        odds_BP2 = means_BP2 - _log1mexp(means_BP2)
        ratio_BP = jax.nn.log_sigmoid(margins(odds_BP2))
        losses_BP = -policy.means[..., 0] - self.beta * ratio_BP
        return Judged(losses_BP, self.beta * policy.means)


def _log1mexp(x: jax.Array) -> jax.Array:
    """Returns log(1 − eˣ) for x < 0 without losing digits (Mächler 2012)."""
    near = x > -0.693
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, small, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


class Simpo(Preference):
    """−log σ(β · difference of mean log-probabilities − γ) (Meng et al. 2024,
    arXiv:2405.14734). It needs no reference. γ is `margin`.
    """

    against = None
    reads = ("beta", "margin")
    beta = 2.0

    def judge(self, policy, reference, baseline_B1=0.0) -> Judged:
        rewards_BP2 = self.beta * policy.means
        margin = 1.0 if self.config.margin is None else self.config.margin
        losses_BP = -jax.nn.log_sigmoid(margins(rewards_BP2) - margin)
        return Judged(losses_BP, rewards_BP2)


class Kto(Preference):
    """1 − σ(β · distance of a log-ratio from a baseline) (Ethayarajh et al. 2024,
    arXiv:2402.01306), of the chosen upwards and of the rejected downwards.

    No two completions are compared: each side counts by itself, half of the pair. The
    baseline is the mean log-ratio of completions with prompts that they do not belong
    to, at least 0, and a constant. Here they are those of the pairs of the same row
    (`with_completions_of_others`), so that it does not depend on how a batch is cut
    over devices and micro-batches; a row with a single pair has the baseline 0.
    """

    def judge(self, policy, reference, baseline_B1=0.0) -> Judged:
        ratios_BP2 = policy.logprobs - reference.logprobs
        chosen_BP = jax.nn.sigmoid(self.beta * (ratios_BP2[..., 0] - baseline_B1))
        rejected_BP = jax.nn.sigmoid(self.beta * (baseline_B1 - ratios_BP2[..., 1]))
        losses_BP = 1.0 - 0.5 * (chosen_BP + rejected_BP)
        return Judged(losses_BP, self.beta * ratios_BP2)

    def baseline(self, params: Any, batch: Batch) -> Any:
        changed, real_BS = with_completions_of_others(batch)
        trained = jax.lax.stop_gradient(params.trained)
        nll_BL = self._predict(trained, changed).nll
        ratio_BL = self._reference(params, changed) - nll_BL
        ratios_BS = jax.vmap(segment_sums)(
            ratio_BL * changed.loss_weights, changed.segment_ids
        )
        count_B = jnp.maximum(real_BS.sum(axis=1), 1)
        mean_B = jnp.where(real_BS, ratios_BS, 0.0).sum(axis=1) / count_B
        return jax.lax.stop_gradient(jnp.maximum(mean_B, 0.0))[:, None]
