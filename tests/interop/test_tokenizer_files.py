"""A tokenizer opens without its model, from each kind of file, with its own ids."""

from __future__ import annotations

import io
import json

import pytest
import tokenizers

from lmx.core.errors import DataError, UserError
from lmx.inputs.tokenizers import train_tokenizer
from lmx.interop.gguf_writer import write_gguf
from lmx.interop.tokenizer_files import open_tokenizer

CORPUS = ["how much wood would a woodchuck chuck", "the quick brown fox, 12 dogs"] * 5
TEXT = "the wood, 3 foxes — 木 much"


@pytest.fixture
def ours():
    return train_tokenizer("bpe", CORPUS, 300)


def test_a_folder_a_workdir_and_a_file_of_lmx_are_one(ours, tmp_path):
    ours.save(tmp_path / "alone")
    ours.save(tmp_path / "run" / "tokenizer")
    for name in ("alone", "run", "alone/tokenizer.json"):
        assert open_tokenizer(tmp_path / name).fingerprint == ours.fingerprint


def test_a_hugging_face_folder_needs_no_weights(ours, tmp_path):
    (tmp_path / "tokenizer.json").write_text(ours.content, "utf8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|bos|>"}), "utf8"
    )
    reference = tokenizers.Tokenizer.from_str(ours.content)
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        found = open_tokenizer(name)
        assert found.encode(TEXT) == reference.encode(TEXT).ids
        assert found.eos_id == ours.bos_id  # as its settings say


def test_a_sentencepiece_file_is_read_as_its_library_does(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file = tmp_path / "spm.model"
    file.write_bytes(model.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert open_tokenizer(file).encode(TEXT) == reference.encode(TEXT)


def test_a_gguf_file_gives_its_tokenizer(tmp_path):
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = byte_level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=byte_level.alphabet()
    )
    reference.train_from_iterator(CORPUS, trainer=trainer)
    model = json.loads(reference.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, "<eos>"],
        "token_type": [1] * len(tokens) + [3],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "eos_token_id": len(tokens),
    }
    metadata = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    write_gguf(tmp_path / "m.gguf", metadata, [], "F32")
    found = open_tokenizer(tmp_path / "m.gguf")
    assert found.encode(TEXT) == reference.encode(TEXT).ids
    assert found.eos_id == len(tokens)


@pytest.mark.parametrize("name", ["empty", "nowhere", "notes.txt"])
def test_what_holds_none_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(UserError, match=name):
        open_tokenizer(tmp_path / name)


def test_a_damaged_one_is_named(tmp_path):
    for name in ("spm.model", "tokenizer.json", "m.gguf"):
        (tmp_path / name).write_bytes(b"\x0a\xff{")
        with pytest.raises(DataError, match=name):
            open_tokenizer(tmp_path / name)
