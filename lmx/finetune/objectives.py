"""All objectives, by the name that `objective.name` gives them."""

from __future__ import annotations

from typing import Any

from lmx.finetune.distill import Distill
from lmx.finetune.preferences import Dpo, Ipo, Kto, Orpo, Simpo
from lmx.finetune.reward import Reward
from lmx.training.objective import NextToken

OBJECTIVES: dict[str, Any] = {
    "next_token": NextToken,
    "dpo": Dpo,
    "ipo": Ipo,
    "kto": Kto,
    "orpo": Orpo,
    "simpo": Simpo,
    "reward": Reward,
    "distill": Distill,
}
