"""Every family against transformers: the same logits in, the same tensors out.

Tiny random models are made by transformers itself, in every variant that their configs
can express here.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import load
from lmx.core.errors import UserError
from lmx.interop.hf_config import read_config
from lmx.interop.hf_families import FAMILIES
from lmx.interop.pretrained import open_pretrained
from lmx.interop.safetensors_file import Safetensors
from lmx.models.decoder import Decoder, head_logits

torch = pytest.importorskip("torch", reason="the reference is torch's (Python 3.11)")
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 64, 48
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ENCODERS = ("bert",)  # tried in test_encoder.py
NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
}
FEW = {"num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "num_key_value_heads": 4,
}
CASES = {
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": LENGTH,
            "initializer_range": 0.3,
            **{k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
        },
    ),
    "llama": ("Llama", SMALL),
    "llama_tied_odd_head": (
        "Llama",
        {**SMALL, "tie_word_embeddings": True, "head_dim": 10, "rms_norm_eps": 1e-3},
    ),
    "llama3.1": ("Llama", {**SMALL, "rope_parameters": LLAMA3}),
    "llama_linear": (
        "Llama",
        {
            **SMALL,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 500.0,
                "factor": 4.0,
            },
        },
    ),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 8}),
    "mistral_full": ("Mistral", {**SMALL, "sliding_window": None}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2_windows": (
        "Qwen2",
        {
            **SMALL,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16}),
    "olmo2": ("Olmo2", SMALL),
    "smollm3": ("SmolLM3", {**SMALL, "no_rope_layer_interval": 2}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {
            **SMALL,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        {
            **SMALL,
            "num_hidden_layers": 7,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "final_logit_softcapping": None,
        },
    ),
    "llama_biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama_dynamic": (
        "Llama",
        {
            **SMALL,
            "max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 500.0,
                "factor": 3.0,
            },
        },
    ),
    "qwen2_yarn": ("Qwen2", {**SMALL, "rope_parameters": YARN}),
    "qwen3_biases": ("Qwen3", {**SMALL, "head_dim": 16, "attention_bias": True}),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 8, "partial_rotary_factor": 0.5}),
    "phi3_longrope": (
        "Phi3",
        {
            **SMALL,
            "hidden_size": 48,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "short_factor": [1.0, 1.1, 1.2, 1.5, 1.6, 1.7],
                "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
            },
        },
    ),
    "gptneox": ("GPTNeoX", NEOX),
    "gptneox_sequential": (
        "GPTNeoX",
        {**NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    "mixtral": (
        "Mixtral",
        {**SMALL, "num_local_experts": 4, "sliding_window": 8, **FEW},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **SMALL,
            "head_dim": 16,
            "num_experts": 5,
            "moe_intermediate_size": 24,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            **FEW,
        },
    ),
    "olmoe": ("Olmoe", {**SMALL, "num_experts": 5, **FEW}),
    "gpt_oss": (
        "GptOss",
        {
            **SMALL,
            "head_dim": 16,
            "num_local_experts": 5,
            "sliding_window": 8,
            "rope_parameters": {**YARN, "truncate": False},
            **FEW,
        },
    ),
    "deepseek_v2": ("DeepseekV2", {**SMALL, **LATENT, "q_lora_rank": None, **FEW}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        {
            **SMALL,
            **LATENT,
            "q_lora_rank": 20,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
            **FEW,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **SMALL,
            **LATENT,
            "q_lora_rank": 20,
            "n_group": 3,
            "topk_group": 2,
            "rms_norm_eps": 1e-2,  # but not of the norms of latents
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
            **FEW,
        },
    ),
}


def tokenizer_of(folder):
    """Writes a tokenizer whose vocabulary is the model's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocab |= {chr(ord("0") + i): i for i in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module", params=list(CASES))
def published(request, tmp_path_factory):
    """A folder that transformers saved, and its model."""
    name, options = CASES[request.param]
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **options, attn_implementation="eager"
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms start as zeros and ones: hide no mix-up
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder, safe_serialization=True)
    tokenizer_of(folder)
    return folder, model


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


def test_greedy_text_stays_that_of_transformers_for_200_tokens(tmp_path):
    options = {**SMALL, "max_position_embeddings": 256, "sliding_window": 24}
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


def test_every_family_is_tried():
    assert {name.lower() for name, _ in CASES.values()} == {
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
def test_files_of_older_versions_mean_the_same(tmp_path, case, gone, given):
    name, options = CASES[case]
    fields = getattr(transformers, f"{name}Config")(**options).to_dict()
    _, new = read_config(fields, "new")
    old = {k: v for k, v in fields.items() if k not in gone} | given
    if scaling := given.get("rope_scaling"):
        old["rope_scaling"] = {k: v for k, v in scaling.items() if k != "rope_theta"}
    assert read_config(old, "old") == (fields["model_type"], new)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ENCODERS])
def test_a_field_that_is_missing_means_what_transformers_takes_for_it(family):
    name = next(c for c, _ in CASES.values() if c.lower() == family.replace("_", ""))
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    sizes |= {"n_positions": 48}
    if family != "gpt2":
        sizes = {
            k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size")
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
def test_a_value_that_makes_no_sense_is_refused_by_name(family, field, value):
    fields = {**SMALL, "model_type": family, "sliding_window": 8, field: value}
    if family == "llama":
        fields["sliding_window"] = 8
    with pytest.raises(UserError, match=field):
        read_config(fields, "x")


def test_a_window_that_no_layer_is_said_to_have_is_refused():
    fields = {**SMALL, "model_type": "llama", "sliding_window": 8}
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
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, field, value):
    config = transformers.LlamaConfig(**SMALL).to_dict()
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError) as refusal:
        open_pretrained(tmp_path)
    assert any(word in str(refusal.value) for word in (field, str(value), "rope_type"))
