"""Tokenizers of Hugging Face directories, whatever files they are kept in."""

from __future__ import annotations

import json

import pytest

from lmx.core.errors import DataError
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer
from lmx.interop.hf_tokenizer import read_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other dogs",
    "she sells sea shells by the sea shore where the shells are",
    "    return 12345 + 67890  # 'll 've it's",
] * 3
TURNS = ["<eos>", "<end_of_turn>", "<|eot_id|>"]


def write(folder, **files):
    """Writes JSON files by their name without the suffix."""
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), "utf8")


def fast(folder, specials=TURNS):
    """A tokenizer.json with special tokens; returns the ids of those."""
    content = json.loads(train_tokenizer("bpe", CORPUS, 300).content)
    size = len(content["model"]["vocab"])
    for index, name in enumerate(specials, start=size):
        token = dict.fromkeys(
            ("single_word", "lstrip", "rstrip", "normalized", "special"), False
        )
        token |= {"id": index, "content": name, "special": True}
        content["added_tokens"].append(token)
    write(folder, tokenizer=content)
    return list(range(size, size + len(specials)))


@pytest.mark.parametrize("listed", ["generation_config", "config"])
def test_all_tokens_that_end_a_reply_are_known_and_kept(tmp_path, listed):
    eos, turn, _ = fast(tmp_path)
    config = {"eos_token_id": eos}
    write(
        tmp_path,
        tokenizer_config={"eos_token": "<eos>"},
        **{listed: {"eos_token_id": [turn, eos, 10**9, "x"]}},
    )
    if listed == "config":
        config = json.loads((tmp_path / "config.json").read_text())
    found, _ = read_tokenizer(tmp_path, config)
    assert found.eos_id == eos
    assert found.eos_ids == (eos, turn)
    found.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.eos_ids == (eos, turn)
    assert again.fingerprint == found.fingerprint


def test_a_turn_that_the_chat_template_ends_ends_a_reply(tmp_path):
    eos, turn, _ = fast(tmp_path)
    write(
        tmp_path,
        special_tokens_map={"eos_token": {"content": "<eos>"}},
        tokenizer_config={"eos_token": None, "chat_template": "a<end_of_turn>"},
    )
    found, template = read_tokenizer(tmp_path, {})
    assert found.eos_ids == (eos, turn)
    assert template == "a<end_of_turn>"


def test_a_meta_json_from_before_eos_ids_still_loads(tmp_path):
    train_tokenizer("byte", [], 259).save(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["eos_ids"]
    write(tmp_path, meta=meta)
    found = Tokenizer.load(tmp_path)
    assert found.eos_ids == (found.eos_id,)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    fast(tmp_path, [])
    with pytest.raises(DataError, match="end-of-text"):
        read_tokenizer(tmp_path, {})
