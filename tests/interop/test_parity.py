"""The proof of a conversion looks past windows and past the original context."""

from __future__ import annotations

import dataclasses

import pytest

from lmx.api import LanguageModel, imported_config
from lmx.core.model_schema import ModelConfig
from lmx.inputs.tokenizers import train_tokenizer
from lmx.interop import parity
from lmx.interop.pretrained import open_pretrained
from lmx.models.decoder import Decoder
from lmx.models.sizes import resolve

pytest.importorskip("torch")
pytest.importorskip("transformers")

SHAPE = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
SHAPE |= {"mlp_dim": 48, "context_length": 192, "norm_epsilon": 1e-6}
CASES = {
    "window": ({"pattern": ("window",), "window": 100}, {"window": 99}, 164),
    "original_context": (
        {
            "rope_scaling": "llama3",
            "rope_factor": 8.0,
            "rope_original_length": 80,
            "rope_base": 10.0,
        },
        {"rope_factor": 7.0},
        144,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A published model, opened, with its weights; and what its case says."""
    import jax
    from flax import linen as nn

    options, wrong, length = CASES[request.param]
    tokenizer = train_tokenizer("byte", [], 259)
    config = ModelConfig(**SHAPE, **options, init_scale=0.3, compute_dtype="float32")
    model = resolve(config, vocab_size=tokenizer.vocab_size)
    tokens = jax.numpy.zeros((1, 4), int)
    params = nn.meta.unbox(Decoder(model).init(jax.random.key(0), tokens)["params"])
    lm = LanguageModel(imported_config(model), params, tokenizer)
    found = open_pretrained(lm.save(tmp_path_factory.mktemp("parity") / "hf"))
    return found, params, request.param, wrong, length


def test_outputs_are_compared_past_what_bounds_the_sight(case):
    found, params, name, _, length = case
    proof = parity.parity(found, params, found.model)
    assert proof["ok"], proof
    assert proof["logits"]["tokens"] == [64, length]
    assert proof["logits"]["past"] == {name: True}


def test_what_differs_only_there_is_caught(case):
    found, params, _, wrong, _ = case
    model = dataclasses.replace(found.model, **wrong)
    proof = parity.parity(found, params, model)
    assert proof["weights"]["ok"]
    assert not proof["logits"]["ok"]
    assert not proof["ok"]


def test_what_would_cost_too_much_is_left_out_and_said(case, monkeypatch):
    monkeypatch.setattr(parity, "LARGEST_SCORES", 1e5)
    found, params, name, _, _ = case
    proof = parity.parity(found, params, found.model)
    assert proof["logits"]["tokens"] == [64]
    assert proof["logits"]["past"] == {name: False}
