"""A reward model: a number for each reply, from pairs of which one is better.

Command: lmx train --config=experiments/finetune/reward.py --config.model.init_from=W
                 --config.data.path=STORE    (experiments/data/preferences.py builds it)
Cost:    that of dpo.py, less the reference: about two thirds
Expect:  the first loss is 0.693; more and more of the held-out pairs are right

Ask it with lmx.load(WORKDIR).reward([reply, reply], prompt=prompt).
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

    config.objective.name = "reward"

    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 20
    config.optim.final_fraction = 0.0
    config.optim.weight_decay = 0.0

    config.evals.every_steps = 50
    config.checkpoint.save_every_steps = 50
    return lmx.variant(config, arg)
