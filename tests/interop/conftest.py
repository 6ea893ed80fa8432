"""Models of ours, and published ones, that tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
import tokenizers

from lmx.api import LanguageModel, imported_config
from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve

TEXT = "the quick brown fox jumps over the lazy dog; 12 + 34 = 46.\n"
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[reply]"
SMALL = {
    "context_length": 64,
    "width": 32,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 64,
    "compute_dtype": "float32",
}
GPT2 = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"}
LLAMA = {"num_kv_heads": 2, "head": "untied", "norm_epsilon": 1e-6}
FORMS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama tied": {"head_dim": 10},
    "llama linear": {"rope_scaling": "linear", "rope_factor": 4.0, "rope_base": 5e5},
    "llama 3": {
        "rope_scaling": "llama3",
        "rope_factor": 8.0,
        "rope_original_length": 16,
    },
    "mistral": {**LLAMA, "pattern": ("window",), "window": 8},
    "qwen2": {**LLAMA, "biases": "qkv"},
    "qwen2 windows": {"biases": "qkv", "pattern": ("attention", "window"), "window": 8},
    "qwen3": {**LLAMA, "qk_norm": "rmsnorm"},
}


def tokenizer_of(kind):
    """Returns one of ours, or 'gpt2': one made elsewhere, of GPT-2's form."""
    if kind != "gpt2":
        return train_tokenizer(kind, [TEXT] * 3, 300)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([TEXT] * 3, trainer=trainer)
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id"), 0)
    meta = {"kind": "foreign", **ids, "unk_id": None, "prefix_ids": []}
    return Tokenizer(backend.to_str(), meta)


def made(form, kind="byte", template=TEMPLATE, **options):
    """Returns a model with random weights: no bias is 0 and no scale is 1."""
    tokenizer = tokenizer_of(kind)
    config = ModelConfig(**{**SMALL, **FORMS[form], **options})
    model = resolve(config, vocab_size=tokenizer.vocab_size)
    shapes = flatten_with_names(nn.meta.unbox(abstract_params(model)))
    random = np.random.default_rng(0)
    params = nest(
        {
            name: (
                name.endswith("/scale") + 0.2 * random.normal(size=leaf.shape)
            ).astype(np.float32)
            for name, leaf in shapes
        }
    )
    return LanguageModel(
        imported_config(model), params, tokenizer, chat_template=template
    )


@pytest.fixture(scope="session")
def model_of():
    """Returns the function that makes a model of a form of `FORMS`."""
    return made


@pytest.fixture(params=FORMS)
def form(request):
    """The name of every form."""
    return request.param


@pytest.fixture(scope="session")
def text():
    """What the tokenizers were trained on."""
    return TEXT


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def ours(request):
    """A model of each of two forms."""
    return made(request.param)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A published llama, to copy and to damage; its model beside it."""
    model = made("llama", "gpt2")
    return model.save(tmp_path_factory.mktemp("source") / "hf"), model


@pytest.fixture
def copied(source, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(source[0], tmp_path / "copy"))


def same_params(found, expected):
    found = dict(flatten_with_names(found))
    expected = dict(flatten_with_names(expected))
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value, strict=True)


def same_model(found, expected):
    """The same in every bit: weights, logits, text, and the prompts of a chat."""
    same_params(found.params, expected.params)
    ids = expected.tokenizer.encode(TEXT)
    assert found.tokenizer.encode(TEXT) == ids
    np.testing.assert_array_equal(found.logits(ids), expected.logits(ids))
    said = expected.generate(TEXT[:9], temperature=0, max_new_tokens=12)
    assert found.generate(TEXT[:9], temperature=0, max_new_tokens=12) == said
    assert found.chat_template == expected.chat_template
    messages = [{"role": "user", "content": "the fox"}]
    assert found.chat_prompt(messages) == expected.chat_prompt(messages)


@pytest.fixture(scope="session")
def assert_same_params():
    """Fails unless two models have the same weights, bit for bit."""
    return same_params


@pytest.fixture(scope="session")
def assert_same_model():
    """Fails unless two models are the same in every bit."""
    return same_model
