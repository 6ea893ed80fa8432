"""A model of ours goes out and comes back: the same weights, logits and text.

No reference but lmx itself, and transformers for what it encodes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import ml_dtypes
import numpy as np
import pytest

import lmx
from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names
from lmx.interop.hf_config import write_config
from lmx.models.sizes import resolve

REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["byte", "bpe", "gpt2"])
@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_a_model_comes_back_from_hf_as_it_was(
    tmp_path, form, kind, model_of, assert_same_model
):
    model = model_of(form, kind)
    assert_same_model(lmx.load(model.save(tmp_path / "out")), model)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_text_begins_with_bos_after_the_journey_if_it_did_before(
    tmp_path, kind, model_of, text
):
    model = model_of("llama", kind)
    found = lmx.load(model.save(tmp_path / "out"))
    assert found.tokenizer.prefix_ids == model.tokenizer.prefix_ids
    np.testing.assert_array_equal(found.logprobs(text), model.logprobs(text))


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_all_that_ends_a_reply_goes_out_and_comes_back(tmp_path, to, model_of):
    model = model_of("llama", "gpt2")
    model.tokenizer.eos_ids = (0, 7)
    path = model.save(tmp_path / "out", to=to)
    assert lmx.load(path).tokenizer.eos_ids == (0, 7)
    if to == "hf" and importlib.util.find_spec("transformers"):
        from transformers import GenerationConfig

        assert GenerationConfig.from_pretrained(path).eos_token_id == [0, 7]


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram", "gpt2"])
def test_transformers_encodes_an_exported_tokenizer_s_text_the_same(
    tmp_path, kind, model_of, text
):
    transformers = pytest.importorskip("transformers")
    model = model_of("llama", kind)
    theirs = transformers.AutoTokenizer.from_pretrained(
        model.save(tmp_path / "out"), local_files_only=True
    )
    ours = model.tokenizer
    for said in (text, "  def f(x):\n\n\treturn 'é' + \"你好\" # 12345 👩‍👧 "):
        ids = ours.encode(said)
        assert theirs.encode(said, add_special_tokens=False) == ids
        assert theirs.encode(said) == [*ours.prefix_ids, *ids]
        assert theirs.decode(ids) == said
    assert theirs.eos_token_id == ours.eos_id


def test_every_form_comes_back_as_the_same_architecture(
    tmp_path, form, model_of, assert_same_params
):
    model = model_of(form)
    folder = model.save(tmp_path / "out")
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == form.split()[0]
    found = lmx.load(folder)
    idle = {"param_dtype", "kernels"}
    assert {
        key: value
        for key, value in dataclasses.asdict(found.model).items()
        if value != getattr(model.model, key) and key not in idle
    } == {}
    assert_same_params(found.params, model.params)


@pytest.mark.parametrize(
    "spelled",
    [
        {"rope_dim": 8},
        {
            "rope_scaling": "yarn",
            "rope_original_length": 16,
            "rope_factor": 4.0,
            "rope_turns": (1.0, 32.0),
        },
    ],
)
def test_defaults_that_are_spelled_out_are_exported(spelled):
    shape = {"width": 16, "num_heads": 2, "num_layers": 1, "context_length": 64}
    model = resolve(ModelConfig(**shape, **spelled), vocab_size=40)
    assert write_config(model, "llama")[0] == "llama"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(tmp_path, ours, dtype, assert_same_params):
    found = lmx.load(ours.save(tmp_path / "out", dtype=dtype))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = jax.tree.map(lambda x: x.astype(kind).astype(np.float32), ours.params)
    assert_same_params(found.params, rounded)


@pytest.mark.parametrize(
    "form", ["gpt2", "llama", "qwen2", "qwen3", "llama linear", "llama 3"]
)
def test_a_model_comes_back_from_gguf_as_it_was(
    tmp_path, form, model_of, assert_same_model
):
    model = model_of(form, "gpt2")
    path = model.save(tmp_path / "out", to="gguf")
    assert path == tmp_path / "out" / "model.gguf"
    assert_same_model(lmx.load(path), model)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_int8_is_off_by_half_a_step_at_most(tmp_path, form, model_of, text):
    model = model_of(form, "gpt2")
    found = lmx.load(model.save(tmp_path / "out", to="gguf", dtype="int8"))
    theirs = dict(flatten_with_names(found.params))
    rounded = 0
    for name, value in flatten_with_names(model.params):
        error = np.abs(np.asarray(theirs[name]) - value).max()
        # A step is 1/127 of the largest of 32 values, kept in half precision.
        assert error <= np.abs(value).max() * (0.5 / 127 + 2**-10), name
        rounded += error > 0
    assert rounded > 5
    ids = model.tokenizer.encode(text)
    expected = model.logits(ids)
    assert np.abs(found.logits(ids) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_tokenizer_that_gguf_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path, model_of
):
    model = model_of("llama", "bpe")
    with pytest.raises(UserError, match="safetensors"):
        model.save(tmp_path / "out", to="gguf")
    assert names_of(tmp_path) == []
