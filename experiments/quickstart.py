"""A transformer learns to write Python from Python's own standard library.

Command: bash launch/local.sh train --config=experiments/quickstart.py
Cost:    under 5 minutes on 2 CPU cores, no download
Expect:  about 1.9 validation bits per byte
"""

import lmx


def get_config(arg: str = ""):
    config = lmx.default_config()
    config.steps = 600

    config.model.size = "3m"
    config.model.context_length = 256

    config.data.path = "python_stdlib"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 2048
    config.data.batch_size = 16

    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "wsd"
    config.optim.warmup_steps = 50
    config.optim.decay_fraction = 0.4
    config.optim.final_fraction = 0.0

    config.evals.every_steps = 250
    config.evals.prompts = ("def ", "class ", "import os\n")
    config.evals.compressors = ("gzip", "xz")
    config.evals.function_samples = 32

    config.checkpoint.save_every_steps = 250
    return lmx.variant(config, arg)
