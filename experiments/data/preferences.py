"""Pairs of completions of a prompt, the better first, for preferences and rewards.

Command: lmx data build --config=experiments/data/preferences.py:FILE --out=STORE
                 --config.tokenizer=MODEL/tokenizer
Cost:    seconds for thousands of pairs on 2 CPU cores
Expect:  lmx data show STORE --row=0 has chosen and rejected side by side

FILE is JSON lines (.gz too) or Parquet: records with prompt, chosen and rejected, each
a text or a list of messages; pairs that are equal are counted and left out. MODEL is
the workdir of the model that will be tuned, by `lmx train` or `lmx import`.
"""

from lmx.core.errors import UserError
from lmx.curate.config import default_build_config


def get_config(arg: str = ""):
    if not arg:
        raise UserError("say where the pairs are: --config=…/preferences.py:FILE")
    config = default_build_config()
    config.uses = ("train",)
    config.sources = {
        "pairs": {
            "path": arg,
            "format": "preference",
            "licence": "not stated",
            "uses": ("train",),
        }
    }
    config.duplicates = ("exact",)  # pairs of a kind share their prompts
    return config
