"""Examples to adapt a model with: conversations, summaries, translations.

Command: lmx data build --config=experiments/data/instructions.py:FOLDER --out=STORE
         lmx train --config=… --config.data.path=STORE --config.data.packing=best_fit
Cost:    under a minute on 2 CPU cores
Expect:  only replies, summaries and Spanish verses have a loss: see lmx data show

FOLDER holds the files below, JSON lines, gzipped; each is named with its origin. None
of them comes with lmx. To tune a published model, `lmx import` it to a folder and add
--config.tokenizer=THAT/tokenizer: its chat template lies beside its tokenizer.
"""

from lmx.core.errors import UserError
from lmx.curate.config import default_build_config


def get_config(arg: str = ""):
    if not arg:
        raise UserError("say where the files are: --config=…/instructions.py:FOLDER")
    config = default_build_config()
    config.uses = ("train",)
    config.sources = {
        "conversations": {
            "path": f"{arg}/chat/instructions.jsonl.gz",
            "format": "messages",
            "origin": "PyPI evals 3.0.1.post1",
            "licence": "MIT, some sets listed apart",
            "uses": ("train",),
        },
        "summaries": {
            "path": f"{arg}/summarize/package_descriptions.jsonl.gz",
            "format": "prompt_completion",
            "fields": {"prompt": "{text}\nSummary:", "completion": " {summary}"},
            "origin": "descriptions of the Debian package index",
            "licence": "not stated as one work",
            "uses": ("train",),
        },
        "verses": {
            "path": f"{arg}/pairs/en_es_verses.jsonl.gz",
            "format": "translation",
            "fields": {
                "source": "{en}",
                "target": "{es}",
                "source_language": "English",
                "target_language": "Spanish",
            },
            "origin": "Debian sword-text-kjv and sword-text-sparv",
            "licence": "public domain",
            "uses": ("train",),
        },
    }
    config.duplicates = ("exact",)  # examples of one kind share their prompts
    return config
