"""Tiny random models that transformers makes, in every variant that lmx can express."""

from __future__ import annotations

import json

import pytest

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


def save_tokenizer(folder):
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


@pytest.fixture(scope="session")
def tokenizer_of():
    """Returns the function that writes a tokenizer into the folder of a model."""
    return save_tokenizer


@pytest.fixture(scope="session")
def cases():
    """The class of transformers and the options of each variant."""
    return CASES


@pytest.fixture(scope="session")
def small():
    """The options of a small model of most families."""
    return SMALL


@pytest.fixture(scope="module", params=list(CASES))
def published(request, tmp_path_factory):
    """A folder that transformers saved, and its model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
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
    save_tokenizer(folder)
    return folder, model
