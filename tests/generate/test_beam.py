"""Beam search: against exhaustive search, and against transformers (Python 3.11)."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.generate.beam import beam_search
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.models.decoder import Decoder, abstract_params, head_logits
from lmx.models.sizes import resolve

V = 5


def make(eos_ids=(), **changes):
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "context_length": 24}
    config = resolve(
        ModelConfig(**{**shape, "vocab_size": V, "compute_dtype": "float32", **changes})
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
        nn.meta.unbox(abstract_params(config)),
    )
    return Generator(config, params, eos_ids=eos_ids), config, params


def logprobs_of(config, params, tokens):
    """Returns log p of each token of [B, L] rows after those before it, [B, L - 1]."""
    rows = jnp.asarray(tokens, jnp.int32)
    hidden = Decoder(config).apply({"params": params}, rows)
    logprobs = np.asarray(jax.nn.log_softmax(head_logits(config, params, hidden)))
    chosen = np.asarray(tokens)[:, 1:, None]
    return np.take_along_axis(logprobs[:, :-1], chosen, axis=-1)[..., 0].astype(float)


def test_beams_enough_for_all_texts_find_the_best_ones():
    generator, config, params = make()
    prompt, new, beams = [1, 3], 3, V**2
    texts = list(itertools.product(range(V), repeat=new))
    rows = np.array([[*prompt, *text] for text in texts])
    sums = logprobs_of(config, params, rows)[:, 1:].sum(axis=1)
    sampling = SamplingConfig(beams=beams, max_new_tokens=new)
    found = beam_search(generator, prompt, sampling)
    order = np.argsort(-sums)[:beams]
    assert [tuple(beam.tokens) for beam in found] == [texts[i] for i in order]
    for beam, i in zip(found, order, strict=True):
        assert sum(beam.logprobs) == pytest.approx(sums[i], abs=1e-4)
        assert beam.finish_reason == "length"


def test_an_end_token_ends_a_beam_and_the_penalty_weighs_lengths():
    generator, config, params = make(eos_ids=(2,))
    by_penalty = {}
    for penalty in (-3.0, 3.0):
        sampling = SamplingConfig(beams=4, max_new_tokens=6, length_penalty=penalty)
        found = beam_search(generator, [1], sampling)
        scores = [sum(beam.logprobs) / len(beam.tokens) ** penalty for beam in found]
        assert scores == sorted(scores, reverse=True)
        for beam in found:
            ended = beam.tokens[-1] == 2
            assert (beam.finish_reason == "eos") == ended
            assert 2 not in beam.tokens[:-1]
            assert ended or len(beam.tokens) == 6
            expected = logprobs_of(config, params, [[1, *beam.tokens]])[0]
            np.testing.assert_allclose(beam.logprobs, expected, atol=1e-4)
        by_penalty[penalty] = np.mean([len(beam.tokens) for beam in found])
    assert by_penalty[-3.0] < by_penalty[3.0]


def test_one_step_of_a_wide_beam_is_the_best_tokens():
    generator, config, params = make()
    found = beam_search(generator, [4], SamplingConfig(beams=7, max_new_tokens=1))
    assert len(found) == V  # there are no more
    rows = [[4, token] for token in range(V)]
    best = np.argsort(-logprobs_of(config, params, rows)[:, 0])
    assert [beam.tokens[0] for beam in found] == best.tolist()


@pytest.mark.parametrize("changes", [{"pattern": ("window",), "window": 3}, {}])
def test_a_long_search_grows_its_cache(changes):
    generator, config, params = make(context_length=400, **changes)
    prompt = np.random.default_rng(1).integers(0, V, 250).tolist()
    (best, *_) = beam_search(
        generator, prompt, SamplingConfig(beams=2, max_new_tokens=12)
    )
    expected = logprobs_of(config, params, [[*prompt, *best.tokens]])[0, -12:]
    np.testing.assert_allclose(best.logprobs, expected, atol=1e-3)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="beams=0"):
        SamplingConfig(beams=0)
    with pytest.raises(UserError, match=r"repetition_penalty=1\.5 .* beams=2"):
        SamplingConfig(beams=2, repetition_penalty=1.5)


@pytest.mark.parametrize("eos", [None, [7], [7, 11, 12]], ids=str)
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beams_are_those_of_transformers(tmp_path, eos, penalty):
    torch = pytest.importorskip("torch", reason="the reference is torch's (3.11)")
    transformers = pytest.importorskip("transformers")
    from lmx.interop.hf_config import read_config
    from lmx.interop.hf_families import FAMILIES
    from lmx.interop.safetensors_file import Safetensors
    from lmx.interop.weights import read_params

    torch.manual_seed(0)
    options = {
        "vocab_size": 31,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 48,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    model.save_pretrained(tmp_path)
    _, config = read_config(model.config.to_dict(), "x")
    config = resolve(ModelConfig(**{**vars(config), "compute_dtype": "float32"}))
    params = read_params(
        config, FAMILIES["llama"].rows, Safetensors(tmp_path), say_where="x"
    )
    generator = Generator(config, params, eos_ids=tuple(eos or ()))
    sampling = SamplingConfig(beams=4, max_new_tokens=12, length_penalty=penalty)
    for seed in range(4):
        prompt = np.random.default_rng(seed).integers(13, 31, 3 + seed).tolist()
        expected = model.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=4,
            length_penalty=penalty,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
        found = beam_search(generator, prompt, sampling)
        for beam, row in zip(found, expected.tolist(), strict=True):
            new = row[len(prompt) :]
            assert beam.tokens == new[: len(beam.tokens)]
            assert set(new[len(beam.tokens) :]) <= {0, *(eos or ())}
