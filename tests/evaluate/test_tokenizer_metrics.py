"""What is said of a tokenizer is what counting by hand gives."""

import re

import numpy as np
import pytest

from lmx.evaluate.tokenizer_metrics import (
    TokenizerMeter,
    hidden_bits_per_byte,
    text_size,
)
from lmx.inputs.tokenizers import KINDS, train_tokenizer

TEXTS = [
    "The cats sat on 3 mats; the cat's 12 mats are flat.\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n",
    "Кошка сидит на ковре.\n",
    "",
    "人人生而自由,在尊严和权利上一律平等。\n",
]
OTHERS = ["The mat is flat, 🐈 is not. Ελληνικά, кошка, 自由 und Zwölf.\n", "flat 🐈"]


def measured(kind, size=400):
    tokenizer = train_tokenizer(kind, TEXTS, size)
    meter = TokenizerMeter(tokenizer)
    return tokenizer, meter.measure(meter.counts(OTHERS), text_size(OTHERS))


def hand_counted_words(texts):
    """Runs of word characters; each Chinese one is a word. Python's re is independent
    of the tables that lmx has."""
    return sum(len(re.findall(r"[一-鿿]|[^\W一-鿿]+", text)) for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratios_are_those_of_ids_counted_one_by_one(kind):
    tokenizer, found = measured(kind)
    ids = [index for text in OTHERS for index in tokenizer.encode(text)]
    size = sum(len(text.encode()) for text in OTHERS)
    special = {0, 1, 2} | ({3} if kind in ("word", "char") else set())
    assert found.tokens == len(ids)
    assert found.bytes_per_token == size / len(ids)
    assert found.fertility == len(ids) / hand_counted_words(OTHERS)
    assert found.vocabulary == tokenizer.vocab_size - len(special)
    assert found.used == len(set(ids) - special)
    assert found.unknown == ids.count(3) * (3 in special)


def test_bytes_of_characters_are_told_from_characters():
    _, found = measured("byte")
    text = "".join(OTHERS)
    assert found.partial == sum(
        len(char.encode()) for char in text if len(char.encode()) > 1
    )
    assert found.partial_share == found.partial / len(text.encode())
    assert measured("char")[1].partial == 0


def test_text_behind_unknown_tokens_costs_its_bytes():
    _, found = measured("char")
    seen = set("".join(TEXTS))
    hidden = sum(len(c.encode()) for text in OTHERS for c in text if c not in seen)
    assert hidden > 0
    assert found.hidden_bytes == hidden
    assert hidden_bits_per_byte(found) == 8 * hidden / found.size.bytes
    assert measured("bpe")[1].hidden_bytes == 0


def test_an_unknown_token_of_another_library_is_found():
    import json

    from lmx.inputs.tokenizers import Tokenizer

    ours = train_tokenizer("word", TEXTS, 400)
    meta = {"kind": "foreign", "bos_id": 1, "eos_id": 2, "pad_id": 0, "unk_id": None}
    assert json.loads(ours.content)["model"]["unk_token"] == "<|unk|>"
    meter = TokenizerMeter(Tokenizer(ours.content, meta))
    own = TokenizerMeter(ours)
    size = text_size(OTHERS)
    theirs = meter.measure(meter.counts(OTHERS), size)
    assert theirs.unknown == own.measure(own.counts(OTHERS), size).unknown > 0


def test_counts_of_parts_add_up_to_those_of_the_whole():
    tokenizer, found = measured("bpe")
    meter = TokenizerMeter(tokenizer)
    parts = [[text] for text in OTHERS]
    counts = np.sum([meter.counts(part) for part in parts], axis=0)
    size = text_size(parts[0]).plus(text_size(parts[1]))
    assert meter.measure(counts, size) == found
