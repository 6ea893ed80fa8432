"""A reward model: a number for a text, learned from pairs of which one is better.

It is the model with one more parameter, which weighs the final state of a text's last
token (`model.reward_head`). In a row of pairs that is the last token that is read: what
only is predicted, as the end of a text, has no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture
from lmx.core.schema import ObjectiveConfig
from lmx.finetune.preferences import margin_metrics, margins
from lmx.finetune.segments import last_positions, pair_sums
from lmx.generate.embedding import embed
from lmx.inputs.batch import Batch
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.example import Message, complete, converse
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.checks import check_causal
from lmx.models.decoder import REWARD_HEAD, Decoder
from lmx.training.objective import Against, Losses, hidden_states, router_loss


class Reward:
    """−log σ(difference of rewards − margin): Bradley and Terry's model of a choice, as
    in Ouyang et al. 2022, arXiv:2203.02155; the margin is that of Llama 2.
    """

    group = 2
    against: Against | None = None
    reads = ("margin",)

    def __init__(self, model: Architecture, config: ObjectiveConfig):
        check_causal(model, "objective.name='reward'")
        if model.attention != "causal":
            raise UserError(
                f"model.attention={model.attention!r} ends a prompt where a loss "
                "begins, which a text to be rewarded does not tell; set it to 'causal'"
            )
        self.config = config
        self.decoder = Decoder(model)

    def __call__(self, params: Any, batch: Batch) -> Losses:
        segments_BL = batch.segment_ids
        hidden_BLD, router = hidden_states(self.decoder, params, batch)
        rewards_BL = _weighed(hidden_BLD, params[REWARD_HEAD])
        ends_BL = last_positions(segments_BL)
        rewards_BP2 = pair_sums(rewards_BL * ends_BL, segments_BL)
        margin_BP = margins(rewards_BP2) - (self.config.margin or 0.0)
        losses_BP = -jax.nn.log_sigmoid(margin_BP)
        tokens_BP2 = pair_sums(jnp.ones_like(rewards_BL), segments_BL)
        values_BP = losses_BP
        if router is not None:
            added_BP2 = pair_sums(router_loss(self.config, router), segments_BL)
            tokens_BP = jnp.maximum(tokens_BP2.sum(axis=-1), 1.0)
            values_BP = values_BP + added_BP2.sum(axis=-1) / tokens_BP
        real_BP = jnp.all(tokens_BP2 > 0, axis=-1).astype(jnp.float32)
        metrics = {"loss": losses_BP, **margin_metrics(rewards_BP2)}
        return Losses(values_BP, real_BP, metrics)


def _weighed(hidden_BLD: jax.Array, head_D: jax.Array) -> jax.Array:
    """Returns float32 [B, L]: a reward for every prefix; small sums, in full digits."""
    return jnp.sum(hidden_BLD.astype(jnp.float32) * head_D.astype(jnp.float32), axis=-1)


def read_ids(
    reply: str | Sequence[Message],
    prompt: str,
    tokenizer: Tokenizer,
    template: Callable[[], ChatTemplate],
) -> Sequence[int]:
    """Returns the ids that are read of a text after `prompt`, or of a conversation.

    They are those of a side of a pair: all but the last, which only is predicted.
    """
    if isinstance(reply, str):
        return complete(tokenizer, prompt, reply).ids[:-1]
    return converse(tokenizer, template(), reply).ids[:-1]


def rewards(
    model: Architecture, params: Any, rows: Sequence[Sequence[int]]
) -> np.ndarray:
    """Returns float32 [n], the reward of each row of token ids.

    Raises:
      UserError: this is no reward model, or one that was never trained: to it all
        texts are the same.
    """
    head_D = params.get(REWARD_HEAD)
    if head_D is None:
        raise UserError(
            "this model gives no rewards; train one from it with "
            "objective.name='reward' on preference pairs"
        )
    head_D = np.asarray(head_D, np.float32)
    if not head_D.any():
        raise UserError(
            "this reward model was never trained: all its rewards are 0; train it with "
            "objective.name='reward' on preference pairs"
        )
    return embed(model, params, rows, pooling="last") @ head_D
