"""The configs of families mean what transformers takes them for, or are refused."""

from __future__ import annotations

import json

import pytest

from lmx.core.errors import UserError
from lmx.interop.hf_config import read_config
from lmx.interop.hf_families import FAMILIES
from lmx.interop.pretrained import open_pretrained

from .conftest import LENGTH, LLAMA3, YARN

pytest.importorskip("torch", reason="the reference is torch's (Python 3.11)")
transformers = pytest.importorskip("transformers")

ENCODERS = ("bert",)  # tried in test_encoder.py


def test_every_family_is_tried(cases):
    assert {name.lower() for name, _ in cases.values()} == {
        name.replace("_", "") for name in FAMILIES if name not in ENCODERS
    }


@pytest.mark.parametrize(
    ("case", "gone", "given"),
    [
        ("gemma2", ("layer_types",), {}),
        ("gemma3_text", ("layer_types",), {}),
        ("qwen2_windows", ("layer_types",), {"max_window_layers": 1}),
        ("llama3.1", ("rope_parameters",), {"rope_theta": 1e4, "rope_scaling": LLAMA3}),
        (
            "gpt_oss",
            ("rope_parameters",),
            {"rope_theta": 500.0, "rope_scaling": {**YARN, "truncate": False}},
        ),
    ],
)
def test_files_of_older_versions_mean_the_same(tmp_path, case, gone, given, cases):
    name, options = cases[case]
    fields = getattr(transformers, f"{name}Config")(**options).to_dict()
    _, new = read_config(fields, "new")
    old = {k: v for k, v in fields.items() if k not in gone} | given
    if scaling := given.get("rope_scaling"):
        old["rope_scaling"] = {k: v for k, v in scaling.items() if k != "rope_theta"}
    assert read_config(old, "old") == (fields["model_type"], new)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ENCODERS])
def test_a_field_that_is_missing_means_what_transformers_takes_for_it(
    family, cases, small
):
    name = next(c for c, _ in cases.values() if c.lower() == family.replace("_", ""))
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    sizes |= {"n_positions": 48}
    if family != "gpt2":
        sizes = {
            k: small[k] for k in ("vocab_size", "hidden_size", "intermediate_size")
        }
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 32}
        sizes |= {"max_position_embeddings": LENGTH}
    if family.startswith("deepseek"):
        sizes["num_experts_per_tok"] = 2  # without a default
    full = getattr(transformers, f"{name}Config")(**sizes).to_dict()
    _, known = read_config(full, "full")
    assert read_config({"model_type": family, **sizes}, "bare") == (family, known)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "layer_types", ["sliding_attention"] * 3),
        ("qwen3", "layer_types", ["full_attention"]),
        ("qwen2", "max_window_layers", "x"),
        ("smollm3", "no_rope_layer_interval", 0),
        ("smollm3", "no_rope_layers", 3),
        ("gemma", "hidden_act", "silu"),
        ("gemma2", "query_pre_attn_scalar", -4),
        ("gemma2", "attn_logit_softcapping", "x"),
        ("gemma3_text", "rope_parameters", {"rope_theta": 1.0}),
        ("gemma3_text", "sliding_window_pattern", 0),
        ("mistral", "sliding_window", "a"),
        ("mistral", "num_hidden_layers", 10**9),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(family, field, value, small):
    fields = {**small, "model_type": family, "sliding_window": 8, field: value}
    if family == "llama":
        fields["sliding_window"] = 8
    with pytest.raises(UserError, match=field):
        read_config(fields, "x")


def test_a_window_that_no_layer_is_said_to_have_is_refused(small):
    fields = {**small, "model_type": "llama", "sliding_window": 8}
    with pytest.raises(UserError, match="sliding_window=8"):
        read_config(fields, "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mlp_bias", True),
        ("hidden_act", "relu"),
        ("rope_scaling", {"rope_type": "spiral", "factor": 2.0}),
        ("a_new_trick", 3),
        ("model_type", "mamba"),
        ("hidden_size", "wide"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, field, value, small):
    config = transformers.LlamaConfig(**small).to_dict()
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError) as refusal:
        open_pretrained(tmp_path)
    assert any(word in str(refusal.value) for word in (field, str(value), "rope_type"))
