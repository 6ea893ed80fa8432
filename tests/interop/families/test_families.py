"""Every family against transformers: the same logits in, the same tensors out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import load
from lmx.interop.pretrained import open_pretrained
from lmx.interop.safetensors_file import Safetensors
from lmx.models.decoder import Decoder, head_logits

torch = pytest.importorskip("torch", reason="the reference is torch's (Python 3.11)")
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 64, 48  # of the models of conftest.py


def reference_logits(model, tokens, **inputs):
    with torch.no_grad():
        result = model(torch.tensor(tokens), **inputs)
    return result.logits.float().numpy()


@pytest.fixture(scope="module")
def score(published):
    """The function (tokens, segments, positions) → our logits, compiled once."""
    pretrained = open_pretrained(published[0])
    params, shape = pretrained.params(), jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)

    @jax.jit
    def run(params, tokens, segments, positions):
        hidden = Decoder(pretrained.model).apply(
            {"params": params}, tokens, positions=positions, segment_ids=segments
        )
        return head_logits(pretrained.model, params, hidden)

    compiled = run.lower(params, shape, shape, shape).compile(
        compiler_options={"xla_backend_optimization_level": 0}
    )
    return lambda *rows: np.asarray(
        compiled(params, *(r.astype("int32") for r in rows))
    )


def tokens_of(shape, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, shape)


def test_logits_are_those_of_transformers(published, score):
    tokens = tokens_of((2, LENGTH))
    expected = reference_logits(published[1], tokens)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    got = score(tokens, np.ones_like(tokens), positions)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_packed_documents_have_the_logits_that_they_have_alone(published, score):
    model, rows = published[1], ((11, 20), (30, 7))
    tokens = tokens_of((2, LENGTH), seed=1)
    sizes = [(*row, LENGTH - sum(row)) for row in rows]
    segments = np.stack([np.repeat([1, 2, 0], row) for row in sizes])
    positions = np.stack([np.concatenate([*map(np.arange, row)]) for row in sizes])
    got = score(tokens, segments, positions)
    for i, (first, second) in enumerate(rows):
        for part in (slice(0, first), slice(first, first + second)):
            expected = reference_logits(model, tokens[i : i + 1, part])[0]
            np.testing.assert_allclose(got[i, part], expected, atol=1e-4, rtol=0)


def test_what_is_exported_is_the_model_tensor_for_tensor(published, tmp_path):
    folder, model = published
    out = load(folder).save(tmp_path / "out")
    theirs, ours = Safetensors(folder), Safetensors(out)
    assert set(theirs.names()) == set(ours.names())
    for name in theirs.names():
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))
    again = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = tokens_of((1, 30))
    expected = reference_logits(model, tokens)
    np.testing.assert_allclose(
        reference_logits(again, tokens), expected, atol=1e-5, rtol=0
    )


def test_greedy_text_is_that_of_transformers(published):
    folder, model = published
    lm = load(folder)
    prompts = [tokens_of(n, seed=n).tolist() for n in (3, 9, 17)]
    from lmx.generate.sampling import SamplingConfig

    # transformers begins anew where 'longrope' passes the original length, at 16 here.
    new = 5 if lm.model.rope_scaling == "longrope" else 20
    sampling = SamplingConfig(temperature=0, max_new_tokens=new)
    done = lm._generator.generate(prompts, sampling)
    for prompt, result in zip(prompts, done, strict=True):
        # 'dynamic' keeps the longest length it saw until it sees a short text.
        reference_logits(model, [[3]])
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=new, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert result.tokens == out


def test_greedy_text_stays_that_of_transformers_for_200_tokens(
    tmp_path, small, tokenizer_of
):
    options = {**small, "max_position_embeddings": 256, "sliding_window": 24}
    torch.manual_seed(1)
    config = transformers.MistralConfig(**options, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer_of(tmp_path)
    pretrained = open_pretrained(tmp_path)
    from lmx.generate.decode import Generator
    from lmx.generate.sampling import SamplingConfig

    generator = Generator(pretrained.model, pretrained.params(), eos_ids=())
    prompts = [tokens_of(n, seed=n).tolist() for n in (5, 40)]
    sampling = SamplingConfig(temperature=0, max_new_tokens=200)
    for prompt, done in zip(
        prompts, generator.generate(prompts, sampling), strict=True
    ):
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=200,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert done.tokens == out[0, len(prompt) :].tolist()
        assert len(set(done.tokens[-50:])) > 1
