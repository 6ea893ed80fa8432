"""A model learns which of two replies is the better one: DPO, with LoRA.

Command: lmx train --config=experiments/finetune/dpo.py --config.model.init_from=W
                 --config.data.path=STORE    (experiments/data/preferences.py builds it)
Cost:    SmolLM2-135M: 4 to 14 s a step of 8 rows of 128 tokens on 2 shared CPU cores
Expect:  the first loss is 0.693 and its margin 0; then the margin grows and more than
         half of the held-out pairs are right: eval/validation/accuracy

The reference is W itself, which LoRA leaves as it is: no second copy. In full
(--config.adapter.method=None) a copy is kept. Of the same pairs learn
--config.objective.name=ipo, kto, orpo (which needs no reference) and simpo (nor this).
"""

import lmx


def get_config(arg: str = ""):
    config = lmx.default_config()
    config.steps = 200

    config.model.context_length = 512

    config.adapter.method = "lora"
    config.adapter.rank = 16

    config.data.packing = "best_fit"
    config.data.batch_size = 8

    config.objective.name = "dpo"
    config.objective.beta = 0.1

    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 20
    config.optim.final_fraction = 0.0
    config.optim.weight_decay = 0.0

    config.evals.every_steps = 50
    config.checkpoint.save_every_steps = 50
    return lmx.variant(config, arg)
