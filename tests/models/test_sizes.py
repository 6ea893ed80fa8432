"""Shapes and parameter counts: published numbers, the size dial, impossible shapes.

The closed form is held against abstract evaluation of the decoder, and that against
the numbers published with GPT-2 (Radford et al. 2019, counted with tied embeddings)
and Llama 3 (arXiv:2407.21783), and those that transformers 5.23 has for the others.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.models.counting import flops_per_token, parameter_count
from lmx.models.decoder import count_params
from lmx.models.families import FAMILIES, family
from lmx.models.mlp import MLPS
from lmx.models.norms import NORMS
from lmx.models.sizes import parse_size, resolve

PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "llama3_8b": 8_030_261_248,
    "pythia_1b": 1_011_781_632,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_30b_a3b": 30_532_122_624,
    "gpt_oss_20b": 20_914_757_184,
    # Without its heads for several tokens, but with the biases to choose experts by.
    "deepseek_v3": 671_026_404_352 + 58 * 256,
}
TINY = {"vocab_size": 64, "width": 32, "num_layers": 2, "num_heads": 4}


@pytest.mark.parametrize("name", PUBLISHED)
def test_families_have_the_published_parameter_counts(name):
    config = resolve(ModelConfig(**family(name)))
    assert count_params(config) == PUBLISHED[name]
    assert parameter_count(config) == PUBLISHED[name]


def test_every_family_has_a_published_count():
    assert set(FAMILIES) == set(PUBLISHED)


@st.composite
def configs(draw):
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    position = pick("pre", "post", "output", "both")
    return ModelConfig(
        vocab_size=draw(st.integers(1, 99)),
        context_length=draw(st.integers(1, 33)),
        width=draw(st.integers(1, 4)) * kv_heads * groups,
        num_layers=draw(st.integers(1, 5)),
        num_heads=kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=pick(2, 4, 6),
        mlp_dim=pick(None, 5),
        pattern=pick(("attention",), ("window", "attention")),
        window=3,
        positions=pick("rope", "learned", "alibi", "none"),
        norm=pick(*NORMS),
        norm_position=position,
        qk_norm=pick(None, *NORMS, "rmsnorm_all_heads"),
        mlp=pick(*MLPS),
        biases=pick("none", "qkv", "attention", "all"),
        head=pick("tied", "untied"),
        embedding_norm=pick(None, *NORMS),
        token_types=pick(None, 1, 3),
        attention_sinks=pick(None, "learned"),
        sublayers="sequential" if position == "post" else "parallel",
        ffns=pick(("mlp",), ("moe",), ("mlp", "moe")),
        dense_layers=pick(0, 1),
        num_experts=draw(st.integers(2, 4)),
        shared_experts=pick(0, 2),
        expert_dim=pick(None, 3),
        router=pick("softmax", "sigmoid_renormalized"),
    )


def latent(config):
    """Returns the config with latent attention, which some options do not go with."""
    return dataclasses.replace(
        config,
        pattern=("latent", "attention"),
        head_dim=6,
        rope_dim=2,
        kv_latent_dim=5,
        query_latent_dim=config.mlp_dim,
        value_dim=config.expert_dim,
        qk_norm=None,
        attention_sinks=None,
        biases="none" if config.biases == "qkv" else config.biases,
    )


@settings(max_examples=15)
@given(configs())
def test_the_closed_form_counts_what_the_decoder_has(config):
    for each in (config, latent(config)):
        each = resolve(each)
        assert parameter_count(each) == count_params(each)


BUDGETS = {
    1_024: ("1m", "1.5m", "2m", "3m", "5m"),
    8_192: ("10m", "20m", "30m", "50m", "80m"),
    50_257: ("124m", "200m", "350m", "500m", "774m"),
    128_256: ("1b", "1.5b", "2b", "3b", "7b", "8b", "13b", "30b", "34b", "70b"),
}
DIALS = [(vocab, size) for vocab, sizes in BUDGETS.items() for size in sizes]


@pytest.mark.parametrize(("vocab", "size"), DIALS)
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_the_size_dial_comes_within_5_percent_of_the_budget(vocab, size, style):
    gpt2 = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"}
    base = ModelConfig(size=size, vocab_size=vocab)
    config = resolve(dataclasses.replace(base, **(gpt2 if style == "gpt2" else {})))
    count = parameter_count(config)
    assert abs(count / parse_size(size) - 1) <= 0.05, (count, config)
    assert config.num_heads * config.head_dim == config.width
    assert 0.3 <= config.num_layers / (config.width / 64) <= 4


@pytest.mark.parametrize(
    "fixed",
    [
        {"width": 384},
        {"width": 200},
        {"num_layers": 1},
        {"num_layers": 40},
        {"num_heads": 6},
        {"num_heads": 7},
        {"head_dim": 48},
        {"num_kv_heads": 2},
        {"num_kv_heads": 3},
        {"width": 256, "num_heads": 4},
        {"num_layers": 12, "num_heads": 6},
    ],
    ids=str,
)
def test_the_size_dial_keeps_what_is_set_and_meets_the_budget(fixed):
    config = resolve(ModelConfig(size="10m", vocab_size=4096, **fixed))
    for name, value in fixed.items():
        assert getattr(config, name) == value
    assert abs(parameter_count(config) / 10e6 - 1) <= 0.15, config


@pytest.mark.parametrize("vocab", [256, 4096])
def test_a_larger_budget_never_gives_a_smaller_model(vocab):
    sizes = [f"{n}m" for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    counts = [
        parameter_count(resolve(ModelConfig(size=size, vocab_size=vocab)))
        for size in sizes
    ]
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("10m", 10_000_000),
        (" 124M ", 124_000_000),
        ("1.5b", 1_500_000_000),
        ("700k", 700_000),
        ("1T", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10mb", "-1m", "0m", "0.0k", "0.0001k", "1e6", "1,5b"]
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(UserError, match="10m") as error:
        parse_size(text)
    assert repr(text) in str(error.value)


EXPERTS = {"ffns": ("moe",), "num_experts": 4}
LATENT = {"pattern": ("latent",), "kv_latent_dim": 4, "rope_dim": 2}
YARN = {"rope_scaling": "yarn", "rope_original_length": 16}
IMPOSSIBLE = [
    ({"num_heads": 5}, ["model.num_heads=5", "model.width=32", "nearest", "4"]),
    ({"num_kv_heads": 3}, ["model.num_kv_heads=3", "model.num_heads=4"]),
    ({"num_kv_heads": 8}, ["model.num_kv_heads=8", "model.num_heads=4"]),
    ({"head_dim": 7}, ["model.head_dim=7", "even", "rope"]),
    ({"width": 0}, ["model.width=0", "at least 1"]),
    ({"width": -32}, ["model.width=-32", "at least 1"]),
    ({"num_layers": 0}, ["model.num_layers=0", "at least 1"]),
    ({"num_heads": 0}, ["model.num_heads=0", "at least 1"]),
    ({"num_kv_heads": 0}, ["model.num_kv_heads=0", "at least 1"]),
    ({"head_dim": 0}, ["model.head_dim=0", "at least 1"]),
    ({"mlp_dim": 0}, ["model.mlp_dim=0", "at least 1"]),
    ({"vocab_size": 0}, ["model.vocab_size=0", "at least 1"]),
    ({"context_length": 0}, ["model.context_length=0", "at least 1"]),
    ({"pattern": ()}, ["model.pattern=()", "'attention'"]),
    ({"pattern": ("window",)}, ["model.window=None", "at least 1"]),
    ({"pattern": ("window",), "window": 0}, ["model.window=0", "at least 1"]),
    ({"ffns": ()}, ["model.ffns=()", "'mlp'"]),
    ({"ffns": ("moe",)}, ["model.experts_per_token=2", "model.num_experts"]),
    ({**EXPERTS, "experts_per_token": 5}, ["experts_per_token=5", "1..4"]),
    ({**EXPERTS, "expert_groups": 3}, ["expert_groups=3", "num_experts=4"]),
    ({**EXPERTS, "expert_groups": 4}, ["expert_groups_kept=1", "too few"]),
    ({**EXPERTS, "expert_capacity": 0.0}, ["model.expert_capacity=0.0", "None"]),
    ({**EXPERTS, "expert_dim": 0}, ["model.expert_dim=0", "at least 1"]),
    ({**EXPERTS, "router_scale": 0.0}, ["model.router_scale=0.0", "above 0"]),
    ({"dense_layers": 3}, ["model.dense_layers=3", "0..2"]),
    (
        {"sublayers": "parallel", "norm_position": "post"},
        ["'parallel'", "'post'", "'sequential'"],
    ),
    ({"pattern": ("latent",)}, ["model.kv_latent_dim=None", "'latent'"]),
    ({**LATENT, "rope_dim": 8}, ["model.rope_dim=8", "model.head_dim=8"]),
    ({**LATENT, "qk_norm": "rmsnorm"}, ["model.qk_norm='rmsnorm'", "None"]),
    ({**LATENT, "biases": "qkv"}, ["model.biases='qkv'", "'none'"]),
    ({"rope_dim": 3}, ["model.rope_dim=3", "even"]),
    ({"rope_dim": 10}, ["model.rope_dim=10", "model.head_dim"]),
    ({"rope_factor": 0.0}, ["model.rope_factor=0.0", "above 0"]),
    ({"rope_scaling": "yarn"}, ["model.rope_original_length=None", "'yarn'"]),
    ({**YARN, "rope_turns": (4.0, 1.0)}, ["model.rope_turns=(4.0, 1.0)", "rising"]),
    (
        {**YARN, "rope_scaling": "dynamic", "rope_dim": 2},
        ["model.rope_dim=2", "at least 4"],
    ),
    (
        {**YARN, "rope_scaling": "longrope", "rope_short_factors": (1.0,)},
        ["model.rope_short_factors", "1 entries", "4 numbers"],
    ),
    ({"token_types": 0}, ["model.token_types=0", "at least 1"]),
    ({"attention_softcap": 0.0}, ["model.attention_softcap=0.0", "None"]),
    ({"logit_softcap": -1.0}, ["model.logit_softcap=-1.0", "None"]),
    ({"num_layers": None}, ["model.num_layers", "model.size='10m'"]),
    ({"width": None}, ["model.width", "model.size='10m'"]),
]


@pytest.mark.parametrize(
    ("change", "parts"), IMPOSSIBLE, ids=[str(change) for change, _ in IMPOSSIBLE]
)
def test_impossible_shapes_name_the_value_and_the_remedy(change, parts):
    with pytest.raises(UserError) as error:
        resolve(ModelConfig(**{**TINY, **change}))
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert message.count("\n") < 5


def test_heads_of_any_size_are_possible_when_their_size_is_given():
    config = resolve(ModelConfig(**{**TINY, "num_heads": 5, "head_dim": 6}))
    assert (config.num_heads, config.head_dim) == (5, 6)
    assert parameter_count(config) == count_params(config)


def test_the_vocabulary_of_the_tokenizer_counts_unless_the_config_sets_one():
    without = dataclasses.replace(ModelConfig(**TINY), vocab_size=None)
    assert resolve(without, vocab_size=99).vocab_size == 99
    assert resolve(ModelConfig(**TINY), vocab_size=99).vocab_size == 64


def test_of_a_mixture_only_the_experts_of_a_token_count_as_flops():
    # A dense model with an MLP as wide as the experts that work on a token, and a
    # router.
    dense = resolve(ModelConfig(**TINY, mlp_dim=24))
    mixed = resolve(ModelConfig(**TINY, **EXPERTS, expert_dim=8, shared_experts=1))
    router = 2 * 32 * 4
    assert flops_per_token(mixed) == flops_per_token(dense) + 6 * router


def test_resolving_twice_changes_nothing():
    once = resolve(ModelConfig(size="3m", vocab_size=300))
    assert resolve(once) == once


def test_flops_per_token_are_those_of_palm_counted_by_hand():
    # 6·(weights that multiply) + 12·layers·heads·head size·context, with a window of 4
    # in every second layer; the tied embedding multiplies once, as the head.
    tiny = {**TINY, "context_length": 16, "pattern": ("attention", "window")}
    config = resolve(ModelConfig(**tiny, window=4, mlp="gelu"))
    weights = 64 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 128) + 5 * 32
    assert flops_per_token(config) == 6 * weights + 12 * 32 * (16 + 4)
    untied = dataclasses.replace(config, head="untied")
    assert flops_per_token(untied) == flops_per_token(config)
    # Rows of two tokens are within the window too.
    assert flops_per_token(config, length=2) == 6 * weights + 12 * 32 * (2 + 2)
