"""A few hundred cases of benchmarks/tokenizer_round_trip.py; it runs 100,000.

The reference is the text itself, and Python's UTF-8 decoder of the whole.
"""

from __future__ import annotations

import importlib.util
import re
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


def test_the_campaign_finds_a_tokenizer_that_is_not_exact(benchmark):
    class Careless(Tokenizer):
        def decode(self, ids):
            return super().decode(ids).strip()

    found = benchmark.exact_tokenizers()["bpe"]
    found.__class__ = Careless
    _, failed = benchmark.campaign({"careless": found}, 100)
    # Which of the two it meets first is a matter of the draw.
    assert re.search("came back as|stream as they do not decode", failed["careless"])
