"""The quickstart with a mixture of experts: four times the MLPs, the same work a token.

Command: bash launch/local.sh train --config=experiments/experts.py
Cost:    16 minutes on 2 CPU cores that had other work besides; no download of data
Expect:  about 1.42 validation bits per byte (gzip -9: 2.03)
"""

import lmx

PROMPTS = (
    "import os\nimport sys\n\n\ndef ",
    "class Test",
    "def __init__(self, ",
)


def get_config(arg: str = ""):
    config = lmx.default_config()
    config.steps = 420

    config.model.width = 224
    config.model.num_layers = 4
    config.model.num_heads = 7
    config.model.ffns = ("moe",)
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.expert_dim = 320
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

    config.evals.every_steps = 140
    config.evals.prompts = PROMPTS
    config.evals.temperature = 0.5
    config.evals.compressors = ("gzip", "xz")
    config.evals.function_samples = 32

    config.checkpoint.save_every_steps = 140
    return lmx.variant(config, arg)
