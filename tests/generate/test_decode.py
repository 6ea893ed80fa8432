"""Decoding: the same tokens as a full forward pass, in any batch, in few programs."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core import trees
from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.generate import cache, decode, weights
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.models.decoder import Decoder, head_logits, init_cache
from lmx.models.sizes import resolve

V = 53
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
HOT = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=12, seed=5)
PATTERN = ("window", "attention")
VARIANTS = {
    "rope": {},
    "learned": {"positions": "learned", "norm": "layernorm", "biases": "all"},
    "alibi": {"positions": "alibi", "head": "untied"},
    "none": {"positions": "none", "mlp": "gelu"},
    "window": {"pattern": PATTERN, "window": 4, "num_layers": 3},
    "multi_query": {"num_kv_heads": 1, "qk_norm": "rmsnorm"},
    "softcap": {
        "attention_softcap": 5.0,
        "logit_softcap": 8.0,
        "norm_position": "post",
    },
    "scan": {"layer_loop": "scan", "num_layers": 3, "pattern": PATTERN},
    "experts": {
        "ffns": ("mlp", "moe"),
        "num_experts": 4,
        "expert_dim": 16,
        "dense_layers": 1,
        "num_layers": 4,
        "layer_loop": "scan",
    },
    "latent": {
        "pattern": ("latent",),
        "head_dim": 12,
        "rope_dim": 4,
        "kv_latent_dim": 10,
        "query_latent_dim": 14,
        "ffns": ("moe",),
        "num_experts": 4,
        "expert_dim": 16,
        "shared_experts": 1,
        "router": "sigmoid",
    },
    "sinks": {"attention_sinks": "learned", "rope_dim": 4, "sublayers": "parallel"},
    "yarn": {
        "rope_scaling": "yarn",
        "rope_factor": 4.0,
        "rope_original_length": 12,
    },
}


def tiny(**changes) -> ModelConfig:
    shape = {
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": V,
        "context_length": 40,
        "compute_dtype": "float32",
        "window": 6,
    }
    return resolve(ModelConfig(**{**shape, **changes}))


@functools.cache
def build(config: ModelConfig):
    """Returns parameters large enough that greedy text does not repeat itself."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    boxed = Decoder(config).init(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda x: 8 * x, nn.meta.unbox(boxed))


def make(config: ModelConfig, **options) -> Generator:
    options = {"eos_ids": (), "bos_id": 1, **options}
    return Generator(config, build(config), **options)


def cache_lengths(session) -> set[int]:
    """Returns the numbers of slots among a session's layers."""
    return {plane.shape[3] for plane in jax.tree.leaves(session._state.cache)}


@functools.partial(jax.jit, static_argnames="config")
def full_logits(params, tokens, *, config):
    return head_logits(
        config, params, Decoder(config).apply({"params": params}, tokens)
    )


def forward(config, tokens) -> np.ndarray:
    """Returns logits [L, V] of a row; causality lets it be padded to one length."""
    padded = np.zeros((1, config.context_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(full_logits(build(config), padded, config=config))[
        0, : len(tokens)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_stepwise_decode_equals_the_full_forward(name):
    config = tiny(**VARIANTS[name])
    params, L, filled = build(config), 14, (6, 3)
    tokens = np.random.default_rng(0).integers(0, V, (2, L)).astype(np.int32)

    @jax.jit
    def apply(tokens, positions, cache):
        hidden, cache = Decoder(config).apply(
            {"params": params}, tokens, positions=positions, cache=cache
        )
        return head_logits(config, params, hidden), cache

    cache = init_cache(config, batch_size=2, length=16, piece=8)
    positions = np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8))
    # The prompts are 6 and 3 tokens long; the rest of the eight is garbage.
    prompt = np.where(positions < np.array(filled)[:, None], tokens[:, :8], V - 1)
    got, cache = apply(prompt, positions, cache)
    expected = np.stack([forward(config, row) for row in tokens])
    for row, length in enumerate(filled):
        np.testing.assert_allclose(
            got[row, :length], expected[row, :length], atol=1e-4, rtol=1e-4
        )
    for step in range(L - max(filled)):
        at = np.array(filled, np.int32) + step
        got, cache = apply(tokens[[0, 1], at][:, None], at[:, None], cache)
        np.testing.assert_allclose(
            got[:, 0], expected[[0, 1], at], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_equal_the_argmax_of_full_forwards(name):
    config = tiny(**VARIANTS[name])
    prompts = [[3, 1, 4, 1, 5], [9]]
    for prompt, result in zip(
        prompts, make(config).generate(prompts, GREEDY), strict=True
    ):
        text = list(prompt)
        assert len(result.tokens) == len(result.logprobs) == 12
        for token, logprob in zip(result.tokens, result.logprobs, strict=True):
            logits = forward(config, text)[-1]
            assert token == logits.argmax()
            expected = logits[token] - np.log(np.exp(logits - logits.max()).sum())
            assert logprob == pytest.approx(expected - logits.max(), abs=1e-4)
            text.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_a_batch_of_ragged_prompts_equals_each_alone(sampling):
    generator = make(tiny(), max_batch=4)
    prompts = [[7] * 3, [], [2, 5] * 10, [11], [4, 8, 15, 16, 23, 42]]
    together = generator.generate(prompts, sampling)
    for row, prompt in enumerate(prompts):
        alone = generator.generate([prompt], sampling, rows=[row])[0]
        assert alone.tokens == together[row].tokens
        np.testing.assert_allclose(alone.logprobs, together[row].logprobs, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_the_chunk_does_not_change_the_tokens(chunk):
    expected = make(tiny()).generate([[3, 4]], HOT)[0].tokens
    assert make(tiny(), chunk=chunk).generate([[3, 4]], HOT)[0].tokens == expected


@pytest.mark.parametrize("name", ["rope", "window", "scan"])
def test_a_long_prompt_in_pieces_and_a_growing_cache_change_nothing(name, monkeypatch):
    config = tiny(**VARIANTS[name], context_length=39)
    prompt = np.random.default_rng(2).integers(0, V, 21).tolist()
    expected = make(config).generate([prompt, [5]], GREEDY)
    monkeypatch.setattr(cache, "SMALLEST_PIECE", 4)
    monkeypatch.setattr(cache, "LARGEST_PIECE", 8)
    monkeypatch.setattr(cache, "SMALLEST_CACHE", 8)
    session = make(config, chunk=5).start([prompt, [5]], GREEDY)
    lengths = [cache_lengths(session)]
    while session.running:
        session.advance()
        lengths.append(cache_lengths(session))
    assert session.results() == [
        dataclasses.replace(e, logprobs=pytest.approx(e.logprobs, abs=1e-4))
        for e in expected
    ]
    # What a window layer keeps: a piece of 8, and what the window sees before it.
    ring = {8 + config.window} if "window" in config.pattern else set()
    assert max(lengths[0]) < 39
    assert lengths[-1] == {39} | ring
    for text, result in zip([prompt, [5]], expected, strict=True):
        for token in result.tokens:
            assert token == forward(config, text)[-1].argmax()
            text = [*text, token]


def test_a_window_layer_keeps_its_window_however_long_the_row_is():
    config = tiny(pattern=("window", "window", "attention"), num_layers=6, window=100)
    shape = {"batch_size": 2, "length": 32_768, "piece": 128}
    cache = jax.eval_shape(lambda: init_cache(config, **shape))
    slots = [cache["blocks"][str(i)]["key"].shape[3] for i in range(3)]
    assert slots == [228, 228, 32_768]


def test_nothing_is_compiled_again_for_lengths_in_one_bucket_or_for_settings():
    generator = make(tiny())
    generator.generate([[1, 2, 3]], GREEDY)
    programs = decode._decode._cache_size(), cache.fill._cache_size()
    for length in (2, 9, 20, 33):
        generator.generate([[4] * length], GREEDY)
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"seed": 9}):
        sampling = SamplingConfig(temperature=0.9, max_new_tokens=7, **options)
        generator.generate([[4] * 5], sampling)
    assert (decode._decode._cache_size(), cache.fill._cache_size()) == programs


def test_the_second_call_of_a_session_compiles_nothing(caplog):
    config = tiny(width=24, num_heads=2)  # a program that no other test has compiled
    params = jax.device_put(build(config), jax.devices()[0])  # as a checkpoint's are
    with jax.log_compiles():
        session = Generator(config, params, eos_ids=(), chunk=2).start([[1, 2]], HOT)
        session.advance()
        session.advance()
    text = "XLA compilation of jit(_decode)"
    assert sum(text in message for message in caplog.messages) == 1


def test_generators_of_one_config_share_their_programs():
    make(tiny()).generate([[1, 2, 3]], GREEDY)
    programs = decode._decode._cache_size()
    other = jax.tree.map(lambda x: x * 0.5, build(tiny()))
    Generator(tiny(), other, eos_ids=[3]).generate([[1, 2, 3]], GREEDY)
    assert decode._decode._cache_size() == programs


def test_any_end_token_ends_its_row_and_no_other():
    free = make(tiny()).generate([[3, 4], [6]], HOT)
    ends = {free[0].tokens[4], free[1].tokens[7]}
    ended = make(tiny(), eos_ids=sorted(ends)).generate([[3, 4], [6]], HOT)
    for got, expected in zip(ended, free, strict=True):
        until = min(i for i, x in enumerate(expected.tokens) if x in ends)
        assert got.tokens == expected.tokens[: until + 1]
        assert got.finish_reason == "eos"
    assert len(ended[0].tokens) <= 5


def test_generation_ends_where_the_context_is_full():
    config = tiny(positions="learned")
    sampling = dataclasses.replace(GREEDY, max_new_tokens=100)
    short, long = make(config).generate([[1] * 30, [1] * 39], sampling)
    assert (len(short.tokens), short.finish_reason) == (10, "length")
    assert (len(long.tokens), long.finish_reason) == (1, "length")


def test_a_prompt_without_room_is_refused_or_cut():
    generator = make(tiny())
    with pytest.raises(UserError, match=r"40 tokens.*holds 40.*at most 39.*'cut'"):
        generator.generate([[1] * 40], GREEDY)
    cut = dataclasses.replace(GREEDY, long_prompt="cut")
    prompt = np.random.default_rng(4).integers(0, V, 60).tolist()
    (result,) = generator.generate([prompt], cut)
    assert result.tokens == generator.generate([prompt[-28:]], GREEDY)[0].tokens


def test_an_empty_prompt_starts_from_bos():
    generator = make(tiny())
    empty, bos = generator.generate([[], [1]], GREEDY)
    assert empty.tokens == bos.tokens
    with pytest.raises(UserError, match="empty"):
        make(tiny(), bos_id=None).generate([[]], GREEDY)


def test_a_halted_row_adds_nothing_and_the_others_go_on():
    expected = make(tiny(), chunk=5).generate([[3], [4]], HOT)
    session = make(tiny(), chunk=5).start([[3], [4]], HOT)
    session.advance()
    session.halt(0)
    while session.running:
        assert session.advance()[0] == []
    first, second = session.results()
    assert (first.tokens, first.finish_reason) == (expected[0].tokens[:5], "stop")
    assert second == expected[1]


def test_bad_calls_name_the_numbers():
    generator = make(tiny(), max_batch=2)
    with pytest.raises(UserError, match="token 53 is not in the vocabulary of 53"):
        generator.generate([[53]], GREEDY)
    with pytest.raises(UserError, match=r"3 prompts.*max_batch=2"):
        generator.start([[1]] * 3, GREEDY)
    with pytest.raises(UserError, match="1 row numbers for 2 prompts"):
        generator.start([[1]] * 2, GREEDY, rows=[0])
    with pytest.raises(UserError, match="chunk=0"):
        make(tiny(), chunk=0)
    assert generator.generate([], GREEDY) == []


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_the_decoding_form_of_the_parameters_is_the_same_model(head):
    config = tiny(compute_dtype="bfloat16", head=head, num_layers=3, pattern=PATTERN)
    fast, params = weights.for_decoding(config, build(config))
    kernels = [x for p, x in trees.flatten_with_names(params) if "kernel" in p]
    assert {str(x.dtype) for x in kernels} == {"bfloat16"}
    tokens = np.random.default_rng(0).integers(0, V, (1, 40)).astype(np.int32)
    hidden = jax.jit(Decoder(fast).apply)({"params": params}, tokens)
    np.testing.assert_allclose(
        full_logits(build(config), tokens, config=config),
        weights.decoding_logits(fast, params, hidden),
        atol=1e-5,
    )


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (4, "bfloat16")])
def test_the_cache_is_updated_in_place(layer_loop, rows, dtype):
    shape = {"num_layers": 8, "context_length": 2048}
    config = tiny(layer_loop=layer_loop, compute_dtype=dtype, **shape)
    generator = make(config)
    session = generator.start([[2] * 2000] * rows, GREEDY)
    cache = sum(x.nbytes for x in jax.tree.leaves(session._state.cache))
    memory = (
        decode._decode.lower(
            generator.params,
            session._state,
            session._settings,
            session._rows,
            np.int32(4),
            decode.end_tokens(()),
            config=generator.config,
            chunk=generator.chunk,
        )
        .compile()
        .memory_analysis()
    )
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 2
