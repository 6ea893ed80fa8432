"""Prompts read in both directions: decoding step by step equals the full forward.

The reference is the decoder without a cache, which is compared with NumPy elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.generate import cache
from lmx.generate.beam import beam_search
from lmx.generate.decode import Generator
from lmx.generate.embedding import embed
from lmx.generate.sampling import SamplingConfig
from lmx.models.decoder import Decoder, head_logits
from lmx.models.sizes import resolve

V = 53
GREEDY = SamplingConfig(temperature=0, max_new_tokens=6)
LATENT = {"pattern": ("latent",), "head_dim": 12, "rope_dim": 4, "kv_latent_dim": 10}
VARIANTS = {
    "rope": {},
    "learned": {"positions": "learned", "norm": "layernorm", "biases": "all"},
    "alibi_scan": {"positions": "alibi", "layer_loop": "scan", "num_kv_heads": 1},
    "latent": LATENT,
    "sinks": {"attention_sinks": "learned", "attention_softcap": 5.0},
}


def make(**changes):
    shape = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    shape |= {"vocab_size": V, "context_length": 40, "compute_dtype": "float32"}
    config = resolve(ModelConfig(**{**shape, "attention": "prefix", **changes}))
    boxed = Decoder(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return config, jax.tree.map(lambda x: 8 * x, nn.meta.unbox(boxed["params"]))


@functools.partial(jax.jit, static_argnames="config")
def full_logits(params, tokens, prompt_tokens, *, config):
    prefix = jnp.arange(tokens.shape[1])[None] < prompt_tokens
    hidden = Decoder(config).apply({"params": params}, tokens, prefix=prefix)
    return head_logits(config, params, hidden)


def forward(config, params, tokens, prompt_tokens):
    """Returns logits [L, V] of a row; what is padded on the right is not seen."""
    padded = np.zeros((1, config.context_length), np.int32)
    padded[0, : len(tokens)] = tokens
    found = full_logits(params, padded, prompt_tokens, config=config)
    return np.asarray(found)[0, : len(tokens)]


def check(config, params, prompts, results):
    for prompt, result in zip(prompts, results, strict=True):
        text = list(prompt)
        for token, logprob in zip(result.tokens, result.logprobs, strict=True):
            logits = forward(config, params, text, len(prompt))[-1]
            assert token == logits.argmax()
            expected = logits[token] - np.log(np.exp(logits - logits.max()).sum())
            assert logprob == pytest.approx(expected - logits.max(), abs=1e-3)
            text.append(token)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_equal_the_argmax_of_full_forwards(name):
    config, params = make(**VARIANTS[name])
    prompts = [[3, 1, 4, 1, 5], [9], [2, 7, 1, 8, 2, 8, 1, 8]]
    results = Generator(config, params, eos_ids=()).generate(prompts, GREEDY)
    check(config, params, prompts, results)
    # The test would not see a prompt that is read forward, were this not so.
    causal = forward(config, params, prompts[2], 1)[-1]
    assert np.abs(causal - forward(config, params, prompts[2], 8)[-1]).max() > 1e-2


def test_a_long_prompt_is_read_whole_and_a_growing_cache_changes_nothing(monkeypatch):
    config, params = make()
    monkeypatch.setattr(cache, "SMALLEST_PIECE", 4)
    monkeypatch.setattr(cache, "LARGEST_PIECE", 8)
    monkeypatch.setattr(cache, "SMALLEST_CACHE", 8)
    prompts = [np.random.default_rng(2).integers(0, V, 30).tolist(), [5, 6]]
    results = Generator(config, params, eos_ids=(), chunk=3).generate(prompts, GREEDY)
    check(config, params, prompts, results)
    long = [*range(2, 41)]  # all of the context but one
    check(
        config,
        params,
        [long],
        Generator(config, params, eos_ids=()).generate([long], GREEDY),
    )


def test_beams_go_on_from_the_prompt():
    config, params = make()
    prompt = [3, 1, 4, 1, 5]
    sampling = dataclasses.replace(GREEDY, beams=3, max_new_tokens=4)
    for beam in beam_search(Generator(config, params, eos_ids=()), prompt, sampling):
        text = [*prompt, *beam.tokens]
        logits = forward(config, params, text, len(prompt))
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        places = len(prompt) - 1 + np.arange(4)
        expected = logprobs[places, np.array(beam.tokens)]
        np.testing.assert_allclose(beam.logprobs, expected, atol=1e-3)


def test_a_text_is_embedded_as_a_prompt():
    config, params = make()
    tokens = [3, 1, 4, 1, 5]
    prefix = np.ones((1, 5), bool)
    hidden = Decoder(config).apply(
        {"params": params}, np.array([tokens], np.int32), prefix=prefix
    )
    (found, _) = embed(config, params, [tokens, [1] * 7], pooling="first")
    np.testing.assert_allclose(found, hidden[0, 0], atol=1e-5)
