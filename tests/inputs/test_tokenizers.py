from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmx.core.errors import DataError, UserError
from lmx.inputs import tokenizers
from lmx.inputs.stream_decoder import StreamDecoder
from lmx.inputs.tokenizers import KINDS, Tokenizer, train_tokenizer

DOCUMENTS = [
    "def add(left, right):\n    return left + right  # it's 12345 + 67\n\n",
    "class Größe:\n\tpass\n\n\n        print('naïve 日本語 🙂')\r\n",
    "<|eos|> is only text, and so is <|pad|>.",
] * 3

EXACT = ("byte", "bpe", "unigram")
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
SPECIAL_TEXT = st.sampled_from(["<|eos|>", "<|bos|>", "<|pad|>", "<|unk|>", " ", "\n"])


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return train_tokenizer(request.param, DOCUMENTS, 400)


@pytest.fixture(scope="module", params=EXACT)
def exact(request) -> Tokenizer:
    return train_tokenizer(request.param, DOCUMENTS, 400)


@settings(deadline=None)
@given(text=ANY_TEXT | st.lists(ANY_TEXT | SPECIAL_TEXT).map("".join))
def test_every_text_survives_a_round_trip(exact, text):
    assert exact.decode(exact.encode(text)) == text


@settings(deadline=None)
@given(text=st.lists(ANY_TEXT | SPECIAL_TEXT).map("".join))
def test_no_text_becomes_a_special_token(tokenizer, text):
    specials = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert not specials & set(tokenizer.encode(text))


@settings(deadline=None)
@given(text=ANY_TEXT, sizes=st.lists(st.integers(1, 4), min_size=1))
def test_a_stream_joins_to_the_text_and_never_shows_half_a_character(
    tokenizer, text, sizes
):
    ids = tokenizer.encode(text)
    stream, shown = StreamDecoder(tokenizer), []
    start = 0
    while start < len(ids):
        size = sizes[start % len(sizes)]
        shown.append(stream.push(ids[start : start + size]))
        start += size
        if tokenizer.kind in EXACT:
            assert text.startswith("".join(shown))
    assert "".join(shown) + stream.flush() == tokenizer.decode(ids)


def test_a_stream_shows_broken_bytes_as_replacement_only_when_flushed():
    tokenizer = train_tokenizer("byte", [], 259)
    stream = StreamDecoder(tokenizer)
    assert stream.push(tokenizer.encode("é")[:1]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.encode("é")) == "é"


def test_word_and_char_tokenizers_round_trip_what_they_know():
    for kind in ("word", "char"):
        tokenizer = train_tokenizer(kind, DOCUMENTS, 400)
        for document in DOCUMENTS:
            assert tokenizer.decode(tokenizer.encode(document)) == document
        assert tokenizer.encode("\u1234") == [tokenizer.unk_id]
        assert tokenizer.decode([tokenizer.unk_id]) == "\ufffd"


def test_indentation_is_one_token_and_digits_come_in_threes():
    pieces = _pieces("    def f():\n        return 1234567\n")
    assert "       " in pieces
    assert [piece for piece in pieces if piece.isdigit()] == ["123", "456", "7"]
    assert " return" in pieces


def test_a_quote_in_code_is_not_a_contraction():
    assert _pieces("it's self['step']")[:2] == ["it", "'s"]
    assert "'step" in _pieces("self['step']") or "step" in _pieces("self['step']")


def _pieces(text: str) -> list[str]:
    import tokenizers as library

    split = pre_tokenizers.Split(library.Regex(tokenizers.PIECES), "isolated")
    return [text[a:b] for _, (a, b) in split.pre_tokenize_str(text)]


def test_batches_encode_like_single_texts(tokenizer):
    assert tokenizer.encode_batch(DOCUMENTS) == [*map(tokenizer.encode, DOCUMENTS)]


def test_saving_and_loading_changes_nothing(tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in (Path(folder), Path(folder, "tokenizer.json")):
            loaded = Tokenizer.load(path)
            assert loaded.fingerprint == tokenizer.fingerprint
            assert loaded.encode_batch(DOCUMENTS) == tokenizer.encode_batch(DOCUMENTS)
            assert loaded.vocab_size == tokenizer.vocab_size
        assert sorted(os.listdir(folder)) == ["meta.json", "tokenizer.json"]


def test_bpe_training_is_repeatable():
    first, second = (train_tokenizer("bpe", DOCUMENTS, 400) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_an_edited_or_truncated_file_is_refused(tmp_path):
    train_tokenizer("bpe", DOCUMENTS, 300).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = file.read_text("utf-8")
    content = json.loads(whole)
    content["model"]["merges"] = content["model"]["merges"][:-1]
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="edited"):
        Tokenizer.load(tmp_path)
    file.write_text(whole[:100], "utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(DataError, match=r"U\+D800, at character 2"):
        tokenizer.encode("ab\ud800")


def test_impossible_requests_name_the_remedy():
    with pytest.raises(UserError, match="did you mean 'bpe'"):
        train_tokenizer("bpee", DOCUMENTS, 400)
    with pytest.raises(UserError, match="vocab_size=259"):
        train_tokenizer("bpe", DOCUMENTS, 258)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer("bpe", [], 400)


def test_ids_beyond_the_vocabulary_decode_to_the_replacement_character(exact):
    assert exact.decode([exact.vocab_size, -1]) == "\ufffd\ufffd"


def test_special_tokens_decode_to_nothing(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("pass"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode("pass"))


def _foreign(path: Path, specials: list[str]) -> None:
    """Writes a tokenizer of another make: metaspaces, bytes where it knows no piece."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *specials, *byte_pieces],
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat"], trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][: 1 + len(specials)]
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown decoder"])
def test_a_tokenizer_of_another_make_loads_and_streams(tmp_path, known):
    file = tmp_path / "tokenizer.json"
    _foreign(file, ["<s>", "</s>"])
    if not known:  # a step that does nothing, but says so in no way we read
        content = json.loads(file.read_text("utf-8"))
        idle = {"type": "Strip", "content": " ", "start": 0, "stop": 0}
        content["decoder"]["decoders"].append(idle)
        file.write_text(json.dumps(content), "utf-8")
    tokenizer = Tokenizer.load(file)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert (tokenizer.pieces is None) is not known
    text = "the cat é 🙂 sat" * 5
    ids = tokenizer.encode(text)
    stream = StreamDecoder(tokenizer)
    shown = [stream.push(index) for index in ids]
    assert "".join(shown) + stream.flush() == text
    assert not any("\ufffd" in part for part in shown)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    _foreign(file, [])
    with pytest.raises(DataError, match="no end-of-document token"):
        Tokenizer.load(file)


def test_ids_with_gaps_count_up_to_the_largest():
    import tokenizers

    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 7}, unk_token="<s>")
    )
    meta = {"kind": "word", "bos_id": 0, "eos_id": 1, "pad_id": 0, "unk_id": 0}
    assert Tokenizer(backend.to_str(), meta).vocab_size == 8
