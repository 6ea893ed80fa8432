"""Merges in files of their own give the ids of transformers and of tiktoken."""

from __future__ import annotations

import base64
import json

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError
from lmx.inputs.token_bytes import from_byte_level
from lmx.interop.hf_tokenizer import read_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other dogs aaa aaaa abab",
    "she sells sea shells by the sea shore where the shells are ALL sheLLs",
    "    return 12345 + 67890  # 'll 've it's I'LL é 你好\n\n\t  x",
] * 4
HARD = (
    "Hello world\n\n  We'll SAY it'S 12345 ½ times…\r\n\tdef f(x):\n"
    "        return x  \n é e\u0301 你好世界 👩‍👩‍👧 ١٢٣ "
    "<|im_start|>/\n ▁ \u00a0\u3000end \n  "
)
SPECIAL = st.sampled_from(
    ["<|end|>", "  ", "\n", "\r\n ", "'s", "'LL", "the", "A", "//"]
)
ANY = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=20)
TEXT = st.lists(ANY | SPECIAL, max_size=6).map("".join)


def trained():
    """A byte-level vocabulary and its merges."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS, trainer=trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


VOCAB, MERGES = trained()
RANKS = {from_byte_level(token): index for token, index in VOCAB.items()}
END = {str(len(VOCAB)): {"content": "<|end|>", "special": True}}
SETTINGS = {"eos_token": "<|end|>", "added_tokens_decoder": END}


def write_ranks(path, ranks=None):
    lines = [
        base64.b64encode(token) + b" %d\n" % rank
        for token, rank in (ranks or RANKS).items()
    ]
    path.write_bytes(b"".join(lines))


def write_merges(folder, merges=None):
    (folder / "vocab.json").write_text(json.dumps(VOCAB), "utf8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges or MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf8")


def write_settings(folder, settings):
    text = json.dumps(settings)
    (folder / "tokenizer_config.json").write_text(text, "utf8")


# The patterns of the two that tiktoken itself does not bring, as their makers wrote
# them (llama3/tokenizer.py, tokenization_qwen.py).
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
FILES = {
    "cl100k_base.tiktoken": "",
    "o200k_base.tiktoken": "",
    "qwen.tiktoken": "qwen",
    "tokenizer.model": "llama",
}


@pytest.fixture(scope="module", params=FILES)
def pair(request, tmp_path_factory):
    """tiktoken's own encoder, ours, and whether text is composed first."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    stem = request.param.split(".")[0]
    if stem in openai_public.ENCODING_CONSTRUCTORS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: RANKS)
            pattern = openai_public.ENCODING_CONSTRUCTORS[stem]()["pat_str"]
    else:
        pattern = QWEN if stem == "qwen" else LLAMA3
    theirs = tiktoken.Encoding(
        stem, pat_str=pattern, mergeable_ranks=RANKS, special_tokens={}
    )
    folder = tmp_path_factory.mktemp("ranks")
    write_ranks(folder / request.param)
    write_settings(folder, {**SETTINGS, "bos_token": "<|end|>"})
    ours, _ = read_tokenizer(folder, {"model_type": FILES[request.param]})
    return theirs, ours, stem == "qwen"


@settings(deadline=None)
@given(text=TEXT)
@example(text=HARD)
@example(text="a\n  ")
def test_ids_are_those_of_tiktoken(pair, text):
    theirs, ours, composed = pair
    if composed:
        text = tokenizers.normalizers.NFC().normalize_str(text)
    ids = ours.encode(text)
    assert ids == theirs.encode_ordinary(text)
    assert ours.decode(ids) == text


def test_added_tokens_are_those_of_the_settings(pair):
    _, ours, _ = pair
    assert ours.eos_id == len(VOCAB)
    assert ours.encode_markup("a<|end|>")[-1] == len(VOCAB)
    assert len(VOCAB) not in ours.encode("a<|end|>")


def test_llama_3_begins_with_bos_and_others_do_not(tmp_path):
    for name, family, begins in (
        ("tokenizer.model", "llama", True),
        ("qwen.tiktoken", "qwen", False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write_ranks(folder / name)
        write_settings(folder, {**SETTINGS, "bos_token": "<|end|>"})
        found, _ = read_tokenizer(folder, {"model_type": family})
        assert found.prefix_ids == ((found.bos_id,) if begins else ())


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")]
)
def test_ids_are_those_of_transformers(tmp_path, family, name):
    transformers = pytest.importorskip("transformers")
    write_merges(tmp_path)
    write_settings(tmp_path, SETTINGS | dict.fromkeys(["unk_token", "pad_token"]))
    ours, _ = read_tokenizer(tmp_path, {"model_type": family})
    theirs = getattr(transformers, name)(
        vocab={**VOCAB, "<|end|>": len(VOCAB)},
        merges=MERGES,
        **dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|end|>"),
    )
    for text in (HARD, *CORPUS):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode_markup("x<|end|>") == theirs.encode("x<|end|>")


def test_an_end_named_only_by_its_id_is_special(tmp_path):
    write_merges(tmp_path)
    found, _ = read_tokenizer(tmp_path, {"model_type": "gpt2", "eos_token_id": 300})
    assert found.eos_ids == (300,)
    assert found.decode([300]) == ""


def test_what_cuts_text_is_never_guessed(tmp_path):
    write_merges(tmp_path)
    with pytest.raises(DataError, match="known"):
        read_tokenizer(tmp_path, {"model_type": "olmo2"})
    (tmp_path / "vocab.json").unlink()
    write_ranks(tmp_path / "mine.tiktoken")
    with pytest.raises(DataError, match="pattern"):
        read_tokenizer(tmp_path, {"model_type": "mine"})


def without(*tokens):
    return {token: rank for token, rank in RANKS.items() if token not in tokens}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not base64 1\n",
        b"IQ== 0\nIQ== 1\n",
        b"IQ== " + b"9" * 5000 + b"\n",
        b"IQ== -1\n",
        b"IQ==\n",
        without(b"a"),
        {**RANKS, b"zzzz": 5},
        {**RANKS, b"zzzz": 10**8},
        {**RANKS, b"z" * 600: len(RANKS)},
    ],
    ids=range(10),
)
def test_damaged_ranks_are_refused(tmp_path, content):
    path = tmp_path / "qwen.tiktoken"
    if isinstance(content, dict):
        write_ranks(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="qwen"):
        read_tokenizer(tmp_path, {})


def test_damaged_merges_are_refused(tmp_path):
    config = {"model_type": "gpt2", "eos_token_id": 0}
    for merges in ([("th", "q")], [("nothing", "here")], [("a", "b", "c")], [("a",)]):
        write_merges(tmp_path, merges)
        with pytest.raises(DataError, match=r"merges\.txt: line 2"):
            read_tokenizer(tmp_path, config)
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_tokenizer(tmp_path, config)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"merges\.txt"):
        read_tokenizer(tmp_path, config)
    write_merges(tmp_path)
    for vocab in ({"a": 10**9}, {"a": "x"}, {"a": 0, "b": 0}, {"a": -1}, {"a": True}):
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        with pytest.raises(DataError, match=r"vocab\.json"):
            read_tokenizer(tmp_path, config)
