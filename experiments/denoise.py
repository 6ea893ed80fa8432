"""Prompts read in both directions: a decoder that works as an encoder and decoder.

Command: lmx data build --config=experiments/data/denoise.py:FOLDER --out=STORE
         lmx train --config=experiments/denoise.py --config.data.path=STORE
Cost:    10 minutes on 2 CPU cores
Expect:  LOG.md compares it with --config.model.attention=causal
"""

import lmx

PROMPTS = ("English: And God said, Let there be light.\nSpanish:",)


def get_config(arg: str = ""):
    config = lmx.default_config()
    config.steps = 800

    config.model.size = "3m"
    config.model.context_length = 256
    config.model.attention = "prefix"

    config.data.packing = "best_fit"
    config.data.mixture = ("verses=2 packages=1 addresses=1",)
    config.data.batch_size = 16

    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "wsd"
    config.optim.warmup_steps = 50
    config.optim.decay_fraction = 0.4
    config.optim.final_fraction = 0.0

    config.evals.every_steps = 200
    config.evals.prompts = PROMPTS
    config.evals.temperature = 0.0

    config.checkpoint.save_every_steps = 200
    return lmx.variant(config, arg)
