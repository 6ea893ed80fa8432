"""Model families of Hugging Face, one line each: class, tensors, reader, writer.

Readers and writers are in `hf_llama`, `hf_gemma`, `hf_gpt` and `hf_experts`, names of
tensors in `hf_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmx.core.model_schema import Architecture
from lmx.interop import hf_experts as experts
from lmx.interop import hf_gemma as gemma
from lmx.interop import hf_gpt as gpt
from lmx.interop import hf_llama as llama
from lmx.interop import hf_names as names
from lmx.interop.hf_fields import Fields
from lmx.interop.names import Row


class Family(NamedTuple):
    """How one `model_type` is read and written.

    Attributes:
      architecture: the class of transformers that holds it.
      rows: names of its tensors.
      read: fields → options that differ from the defaults.
      write: model → fields.
      defaults: what transformers takes for fields that are not there at all, where it
        differs from Llama's.
      unused: fields → patterns of tensors that lmx has no layer for, and why: an import
        names them, and an export lacks them.
    """

    architecture: str
    rows: Sequence[Row]
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[Architecture], dict[str, Any]]
    defaults: Mapping[str, Any] = {}
    unused: Callable[[Fields], dict[str, str]] = lambda _: {}


# In the order in which an export tries them.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", names.GPT2, gpt.read_gpt2, gpt.write_gpt2),
    "llama": Family(
        "LlamaForCausalLM", names.LLAMA, llama.read_llama, llama.write_llama
    ),
    "mistral": Family(
        "MistralForCausalLM",
        names.LLAMA,
        llama.read_mistral,
        llama.write_mistral,
        {"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        names.LLAMA,
        llama.read_qwen2,
        llama.write_qwen2,
        {"num_key_value_heads": 32},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        names.LLAMA,
        llama.read_qwen3,
        llama.write_qwen,
        {"num_key_value_heads": 32, "head_dim": 128},
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        names.OLMO2,
        llama.read_olmo2,
        llama.write_llama,
        {"rms_norm_eps": 1e-5},
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        names.LLAMA,
        llama.read_smollm3,
        llama.write_smollm3,
        {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        names.PHI3,
        llama.read_phi3,
        llama.write_phi3,
        {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", names.GPT_NEOX, gpt.read_gpt_neox, gpt.write_gpt_neox
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        names.LLAMA,
        gemma.read_gemma,
        gemma.write_gemma,
        {"num_key_value_heads": 16, "head_dim": 256},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        names.GEMMA2,
        gemma.read_gemma2,
        gemma.write_gemma2,
        {
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        names.GEMMA2,
        gemma.read_gemma3,
        gemma.write_gemma3,
        {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        names.MIXTRAL,
        experts.read_mixtral,
        experts.write_mixtral,
        {
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        names.QWEN3_MOE,
        experts.read_qwen3_moe,
        experts.write_qwen3_moe,
        {
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        names.QWEN3_MOE,
        experts.read_olmoe,
        experts.write_olmoe,
        {"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        names.GPT_OSS,
        experts.read_gpt_oss,
        experts.write_gpt_oss,
        {
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
    ),
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        names.DEEPSEEK,
        experts.read_deepseek_v2,
        experts.write_deepseek_v2,
        {
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
        },
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        names.DEEPSEEK,
        experts.read_deepseek_v3,
        experts.write_deepseek_v3,
        {
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "moe_intermediate_size": 2048,
            "routed_scaling_factor": 2.5,
            "n_group": 8,
            "topk_group": 4,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "norm_topk_prob": True,
            "max_position_embeddings": 4096,
        },
        experts.unused_deepseek_v3,
    ),
    "bert": Family(
        "BertModel", names.BERT, gpt.read_bert, gpt.write_bert, {}, gpt.unused_bert
    ),
}
