"""A small model learns what a larger one says of every next token.

Command: lmx train --config=experiments/finetune/distill.py
                 --config.objective.teacher=W --config.data.tokenizer=W/tokenizer
Cost:    that of training the student, and a forward pass of the teacher
Expect:  train/kl falls; bits per byte come near those of the teacher

W is a run, such as that of experiments/quickstart.py. From samples of a teacher
instead, of any tokenizer (Kim and Rush 2016):
    lmx generate --workdir=W --prompts=PROMPTS.jsonl --json > samples.jsonl
    lmx data build with format 'prompt_completion' and fields
        {"prompt": "{prompt}", "completion": "{text}"}, then train on that store.
"""

import lmx


def get_config(arg: str = ""):
    config = lmx.default_config()
    config.steps = 400

    config.model.size = "1m"
    config.model.context_length = 256

    config.data.path = "python_stdlib"
    config.data.batch_size = 16

    config.objective.name = "distill"
    config.objective.divergence = "forward"
    config.objective.temperature = 2.0
    config.objective.label_weight = 0.1

    config.optim.learning_rate = 3e-3
    config.optim.schedule = "wsd"
    config.optim.warmup_steps = 50
    config.optim.final_fraction = 0.0

    config.evals.every_steps = 100
    config.checkpoint.save_every_steps = 100
    return lmx.variant(config, arg)
