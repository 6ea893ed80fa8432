"""A few hundred cases of benchmarks/tokenizer_round_trip.py; it runs 100,000.

The reference is the text itself, and Python's UTF-8 decoder of the whole.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from lmx.inputs.tokenizers import Tokenizer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    path = REPOSITORY / "benchmarks" / "tokenizer_round_trip.py"
    spec = importlib.util.spec_from_file_location("tokenizer_round_trip", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_exact_tokenizer_gives_every_text_back(benchmark):
    tokenizers = benchmark.exact_tokenizers()
    assert len(tokenizers) >= 7
    taken, failed = benchmark.campaign(tokenizers, 300)
    assert failed == {}
    assert taken >= 300


class Careless(Tokenizer):
    """It strips what it decodes, which neither keeps a text nor streams."""

    def decode(self, ids):
        return super().decode(ids).strip()


@pytest.fixture
def careless(benchmark):
    found = benchmark.exact_tokenizers()["bpe"]
    found.__class__ = Careless
    return found


def test_a_text_that_does_not_come_back_is_a_problem(benchmark, careless):
    found = benchmark.problem(careless, " a ", [], [1])
    assert found == "' a ' came back as 'a'"


def test_ids_that_do_not_stream_as_they_decode_are_a_problem(benchmark, careless):
    ids = careless.encode(" a ")
    found = benchmark.problem(careless, "a", ids, [1])
    assert found == f"the ids {ids} stream as they do not decode"


def test_the_campaign_names_what_is_not_exact(benchmark, careless):
    _, failed = benchmark.campaign({"careless": careless}, 100)
    assert set(failed) == {"careless"}
