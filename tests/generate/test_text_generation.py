"""Text in, text out: exact stop strings, whole characters, one text however cut."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import StopScanner, complete, stream
from lmx.inputs.tokenizers import train_tokenizer
from lmx.models.decoder import Decoder
from lmx.models.sizes import resolve

HOT = SamplingConfig(temperature=1.0, max_new_tokens=48, seed=3)


@functools.cache
def tokenizer():
    return train_tokenizer("byte", ["text"], 300)


@functools.cache
def parts():
    config = resolve(
        ModelConfig(
            width=16,
            num_layers=1,
            num_heads=2,
            vocab_size=tokenizer().vocab_size,
            context_length=64,
            compute_dtype="float32",
        )
    )
    tokens = jnp.zeros((1, 4), jnp.int32)
    boxed = Decoder(config).init(jax.random.key(1), tokens)["params"]
    return config, nn.meta.unbox(boxed)


def make(chunk: int = 7, **options) -> Generator:
    options = {"eos_ids": (), "bos_id": tokenizer().bos_id, **options}
    return Generator(*parts(), chunk=chunk, **options)


def cut(text: str, stop) -> str:
    """Returns the text up to the match that ends first: the reference, in one line."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(ends)[1]] if ends else text


@given(
    text=st.text("ab", max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    sizes=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_the_cut_does_not_depend_on_where_pieces_are_parted(text, stop, sizes):
    scanner, emitted, at = StopScanner(stop), "", 0
    for size in sizes:
        emitted += scanner.push(text[at : at + size])
        at += size
        assert cut(text, stop).startswith(emitted)  # nothing is ever taken back
    assert emitted + scanner.flush() == cut(text, stop)
    assert scanner.found == any(s in text for s in stop)


@given(text=st.text("abc", max_size=20), stop=st.text("ab", min_size=1, max_size=4))
def test_only_what_may_begin_a_stop_string_is_held_back(text, stop):
    scanner = StopScanner([stop])
    emitted = scanner.push(text)
    if not scanner.found:
        assert stop.startswith(text[len(emitted) :])


def test_streaming_equals_complete():
    whole = complete(make(), tokenizer(), ["def f"], HOT)[0]
    pieces = list(stream(make(), tokenizer(), "def f", HOT))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 2
    assert whole.finish_reason == "length"
    assert whole.text == tokenizer().decode(whole.token_ids)
    assert len(whole.logprobs) == len(whole.token_ids) == 48


@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize(("start", "size"), [(0, 1), (5, 2), (6, 4), (20, 9), (40, 3)])
def test_stop_strings_are_cut_exactly(chunk, start, size):
    free = complete(make(), tokenizer(), ["x"], HOT)[0]
    stop = free.text[start : start + size]
    sampling = dataclasses.replace(HOT, stop=("never seen", stop))
    (got,) = complete(make(chunk), tokenizer(), ["x"], sampling)
    assert got.text == cut(free.text, [stop])
    assert got.finish_reason == "stop"
    assert got.token_ids == free.token_ids[: len(got.token_ids)]
    # The last token is the one that completed the stop string: one fewer lacks it.
    assert stop in tokenizer().decode(got.token_ids)
    assert stop not in tokenizer().decode(got.token_ids[:-1]).rstrip("\ufffd")
    assert "".join(stream(make(chunk), tokenizer(), "x", sampling)) == got.text


def test_a_stop_string_ends_its_own_row_only():
    prompts = ["a", "b", "c"]
    free = complete(make(max_batch=2), tokenizer(), prompts, HOT)
    assert [len(c.token_ids) for c in free] == [48] * 3
    stop = free[1].text[4:8]
    sampling = dataclasses.replace(HOT, stop=(stop,))
    got = complete(make(max_batch=2), tokenizer(), prompts, sampling)
    assert [c.text for c in got] == [cut(c.text, [stop]) for c in free]


def test_no_half_character_is_emitted():
    text = "ж" * 3
    ids = tokenizer().encode(text)

    class Scripted:
        """Stands in for a generator: it always writes the same bytes."""

        eos_ids, max_batch, chunk = (), 8, 1
        at = 0

        def start(self, prompts, sampling, *, rows=None):
            return self

        @property
        def running(self):
            return self.at < len(ids)

        def is_running(self, row):
            return True

        def advance(self, steps=None):
            self.at += 1
            return [[ids[self.at - 1]]]

    pieces = list(stream(Scripted(), tokenizer(), "", SamplingConfig()))
    assert pieces == ["ж"] * 3


def test_the_end_token_is_not_text():
    free = complete(make(), tokenizer(), ["x"], HOT)[0]
    eos = free.token_ids[9]
    (got,) = complete(make(eos_ids=[eos]), tokenizer(), ["x"], HOT)
    assert got.finish_reason == "eos"
    assert got.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
    assert got.text == tokenizer().decode(got.token_ids[:-1])


def test_one_string_is_not_a_list_of_prompts():
    with pytest.raises(UserError, match=r"write \[prompt\]"):
        complete(make(), tokenizer(), "def ", HOT)
