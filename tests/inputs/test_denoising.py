"""Texts with spans taken out; the reference puts them back."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError, UserError
from lmx.inputs import denoising
from lmx.inputs.denoising import SENTINELS, corrupt
from lmx.inputs.examples import FORMATS
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer

TEXT = st.text(st.sampled_from("ab \né🙂<"), min_size=1, max_size=60).map(
    lambda text: text + "b"
)
FORMAT = st.sampled_from(["span_corruption", "prefix"])
CHUNK = st.integers(8, 40)


@pytest.fixture(scope="module")
def byte():
    return train_tokenizer("byte", [], 259, extra=SENTINELS)


@pytest.fixture(scope="module")
def bpe():
    texts = ["a <extra_id_0> is no special token\n", "ab é🙂 abab"] * 9
    return train_tokenizer("bpe", texts, 330, extra=SENTINELS)


def encode(name, tokenizer, text, **fields):
    record = {"text": text, **fields}
    assert FORMATS[name].problem(record) is None
    return FORMATS[name].encoder(tokenizer, None)(record)


def sides(tokenizer, example):
    """Returns what is given and what is learned; the rest of the ids is checked."""
    start = list(example.weights).index(1)
    assert list(example.weights) == [0] * start + [1] * (len(example.ids) - start)
    first = len(tokenizer.prefix_ids)
    assert list(example.ids[:first]) == list(tokenizer.prefix_ids)
    return list(example.ids[first:start]), list(example.ids[start:])


def spans(tokenizer, learned):
    """Returns the ids of each span of an answer, by its sentinel."""
    assert learned[-1] == tokenizer.eos_id
    found: dict[int, list[int]] = {}
    for index in learned[:-1]:
        if index in tokenizer.special_tokens:
            assert index not in found
            found[index] = []
            last = index
        else:
            found[last].append(index)
    assert found.pop(last) == []  # what ends the last span
    return found


def put_back(tokenizer, example):
    given_, learned = sides(tokenizer, example)
    taken = spans(tokenizer, learned)
    names = [tokenizer.token(index) for index in given_ if index in taken]
    assert names == list(SENTINELS[: len(taken)]) == list(map(tokenizer.token, taken))
    assert tokenizer.token(learned[-2]) == SENTINELS[len(taken)]
    return [i for index in given_ for i in taken.get(index, [index])]


@settings(deadline=None, max_examples=60)
@given(text=TEXT, chunk=CHUNK, foreign=st.booleans())
def test_what_was_taken_out_fits_where_it_was(byte, bpe, text, chunk, foreign):
    tokenizer = bpe if foreign else byte
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        return
    examples = encode("span_corruption", tokenizer, text, chunk_tokens=str(chunk))
    assert encode("span_corruption", tokenizer, text, chunk_tokens=chunk) == examples
    parts = [put_back(tokenizer, example) for example in examples]
    assert list(itertools.chain(*parts)) == ids
    sizes = [len(part) for part in parts]
    assert max(sizes) <= chunk
    assert max(sizes) - min(sizes) <= 1
    taken = [spans(tokenizer, sides(tokenizer, one)[1]).values() for one in examples]
    lost = b"".join(tokenizer.piece(i) for each in taken for ids in each for i in ids)
    assert sum(example.size for example in examples) == len(lost)


@settings(deadline=None, max_examples=60)
@given(text=TEXT, chunk=CHUNK)
def test_a_prefix_and_its_rest_are_the_text(bpe, text, chunk):
    ids = bpe.encode(text)
    if len(ids) < 2:
        return
    examples = encode("prefix", bpe, text, chunk_tokens=chunk)
    parts = [sides(bpe, example) for example in examples]
    assert all(given_ and learned for given_, learned in parts)
    assert [i for part in parts for side in part for i in side] == [*ids, bpe.eos_id]
    assert encode("prefix", bpe, text, chunk_tokens=chunk) == examples


def test_a_share_of_15_percent_is_taken_out_in_spans_of_3(byte):
    lengths, counts = [], Counter()
    for number in range(300):
        text = f"text {number} of many, " * (2 + number % 40)
        for example in encode("span_corruption", byte, text):
            taken = spans(byte, sides(byte, example)[1])
            lengths += [len(span) for span in taken.values()]
            counts["all"] += len(put_back(byte, example))
    assert abs(sum(lengths) / counts["all"] - 0.15) < 0.003
    assert abs(np.mean(lengths) - 3) < 0.1
    assert Counter(lengths).most_common(1)[0][0] == 1  # spans of all lengths, as T5's
    assert max(lengths) > 9


def test_all_ways_to_cut_are_as_likely():
    """Of 33 tokens 5 are taken out in two spans: the first has 1, 2, 3 or 4."""
    seen = Counter()
    rng = np.random.default_rng(0)
    for _ in range(4000):
        drawn = rng.integers(0, 2**63, 33).astype(np.uint64)
        _, learned = corrupt(range(33), drawn, sentinels=(-1, -2, -3))
        cut = learned.index(-2)
        seen[cut - 1] += 1
    assert sorted(seen) == [1, 2, 3, 4]
    assert all(abs(count - 1000) < 120 for count in seen.values())


def test_cuts_of_prefixes_are_anywhere(byte):
    cuts = [
        len(sides(byte, encode("prefix", byte, f"{n:04d}" * 5)[0])[0])
        for n in range(2000)
    ]
    assert set(cuts) == set(range(1, 20))
    assert abs(np.mean(cuts) - 10) < 0.5


def test_texts_that_spell_a_sentinel_are_texts(bpe):
    text = "what is <extra_id_0>, and <extra_id_1>?" * 3
    (example,) = encode("span_corruption", bpe, text)
    assert bpe.decode(put_back(bpe, example)) == text


def test_a_tokenizer_without_sentinels_is_refused(byte):
    few = train_tokenizer("byte", [], 259, extra=SENTINELS[:-1])
    with pytest.raises(UserError, match=r"<extra_id_26> is not there"):
        FORMATS["span_corruption"].encoder(few, None)


@pytest.mark.parametrize("name", ["span_corruption", "prefix"])
def test_what_cannot_be_divided_is_named(byte, name):
    form = FORMATS[name]
    with pytest.raises(DataError, match="one token"):
        form.encoder(byte, None)({"text": "a"})
    assert "no text" in form.problem({"text": " \n"})
    for wrong in ("many", "7", "513", "-9", "¹"):
        assert "chunk_tokens" in form.problem({"text": "a b", "chunk_tokens": wrong})


def test_the_sentinels_of_t5_are_used(tmp_path):
    """A tokenizer made as T5's is: no start token, sentinels last, counted down."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{w}" if n % 2 else w, -float(n)) for n, w in enumerate("abcdefgh")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    backend.add_special_tokens([f"<extra_id_{n}>" for n in range(99, -1, -1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    (example,) = encode("span_corruption", tokenizer, "a b d f h a b d f h b d f")
    assert put_back(tokenizer, example) == tokenizer.encode("a b d f h a b d f h b d f")
    assert tokenizer.token(list(example.ids)[-2]).startswith("<extra_id_")


@pytest.mark.parametrize("name", ["span_corruption", "prefix"])
def test_a_long_text_is_hashed_once_however_many_examples_it_makes(
    monkeypatch, byte, name
):
    hashed = 0
    for kind in ("sha256", "shake_256"):
        whole = getattr(denoising.hashlib, kind)

        def counted(content, whole=whole):
            nonlocal hashed
            hashed += len(content)
            return whole(content)

        monkeypatch.setattr(denoising.hashlib, kind, counted)
    text = "abcd " * 4000
    examples = encode(name, byte, text, chunk_tokens="20")
    assert len(examples) == 1000
    assert hashed < len(text) + 50 * len(examples)
