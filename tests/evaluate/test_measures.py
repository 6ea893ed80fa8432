"""Measures agree with an independent computation."""

import gzip
import lzma
import math

import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.evaluate.compression import compressed_bits_per_byte
from lmx.evaluate.perplexity import perplexity, row_sums
from lmx.tasks.syntax import first_function, parses


def test_perplexity_is_the_mean_over_tokens_not_over_batches_or_rows():
    batches = [np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[6.0, 0.0]])]
    sums = row_sums(
        lambda params, b: {"loss": b.sum(1) * params, "weight": (b > 0).sum(1)},
        2.0,
        batches,
    )
    assert sums["loss"].tolist() == [6, 6, 12]
    result = perplexity(sums["loss"], sums["weight"], bytes_per_target=4.0)
    assert result.loss == pytest.approx(2 * 12 / 4)
    assert result.bits_per_byte == pytest.approx(6 / math.log(2) / 4)
    assert result.tokens == 4


def test_compressors_are_the_programs_they_name():
    text = b"for i in range(10):\n    print(i)\n" * 100
    label, bits = compressed_bits_per_byte("gzip", text)
    assert (label, bits) == ("gzip -9", 8 * len(gzip.compress(text, 9)) / len(text))
    _, bits = compressed_bits_per_byte("xz", text)
    assert bits == 8 * len(lzma.compress(text, preset=9)) / len(text)
    with pytest.raises(UserError, match="did you mean 'gzip'"):
        compressed_bits_per_byte("gzp", text)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        (
            "def f(x):\n    return x\n\n\nclass A:\n    pass",
            "def f(x):\n    return x\n",
        ),
        (
            "def f(\n    x,\n):\n    return x\ny = 3\n",
            "def f(\n    x,\n):\n    return x\n",
        ),
        ("def f(x):\n    y = x\n    return y +", "def f(x):\n    y = x\n"),
        ("def f(x): return x", "def f(x): return x\n"),
        ("def f(x):\n\n    # why\n    return 1\n\nx = 1", None),
    ],
)
def test_the_first_function_ends_where_its_indentation_does(text, function):
    found = first_function(text)
    assert parses(found)
    assert function is None or found == function


@pytest.mark.parametrize("text", ["def f(:\n", "def f()\n", "x = '\0'", "(" * 500, ""])
def test_what_python_refuses_does_not_parse(text):
    assert parses(text) == (text == "")
