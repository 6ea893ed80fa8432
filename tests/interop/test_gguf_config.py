"""What a GGUF file says of its architecture is taken whole or refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.interop.gguf_config import read_gguf_config

KEYS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 48,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.attention.value_length": 12,
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.dimension_count": 12,
    "llama.vocab_size": 300,
}
NONE = [0, -1, "x", [1, 2], np.array([3, 3]), float("nan"), float("inf"), True]


def read(**changed):
    tensors = {"token_embd.weight": SimpleNamespace(shape=(300, 48))}
    file = {"metadata": {**KEYS, **changed}, "tensors": tensors}
    return read_gguf_config(SimpleNamespace(path=Path("a.gguf"), **file))[0]


def test_a_whole_file_is_read():
    config = read()
    assert (config.num_layers, config.num_kv_heads, config.head_dim) == (2, 2, 12)
    assert (config.norm_epsilon, config.head) == (1e-5, "tied")


@pytest.mark.parametrize("value", NONE, ids=repr)
@pytest.mark.parametrize("key", [k for k in KEYS if k != "llama.vocab_size"])
def test_a_value_that_is_none_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"a\.gguf.*{key}"):
        read(**{key: value})


def test_more_layers_than_any_model_has_are_refused():
    with pytest.raises(UserError, match=r"llama\.block_count=9223372036854775808"):
        read(**{"llama.block_count": 2**63})


@pytest.mark.parametrize(
    "key",
    [
        "attention.sliding_window",
        "rope.scaling.type",
        "expert_count",
        "attention.value_length",
    ],
)
def test_what_would_change_the_model_is_refused_by_name(key):
    with pytest.raises(UserError, match=rf"llama\.{key}=8 cannot be imported"):
        read(**{f"llama.{key}": 8})


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delitem(KEYS, "llama.block_count")
    with pytest.raises(UserError, match=r"llama\.block_count=None"):
        read()
