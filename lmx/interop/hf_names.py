"""What each family of Hugging Face calls the tensors of each parameter."""

from __future__ import annotations

from lmx.interop.names import Row, linear, norm

_L = "model.layers.{}"
_EMBED = (
    Row("embedding", "model.embed_tokens.weight", "table"),
    Row("head", "lm_head.weight", "table"),
    *norm("final_norm", "model.norm"),
)
_ATTENTION = (
    *linear("attention/query", f"{_L}.self_attn.q_proj"),
    *linear("attention/key", f"{_L}.self_attn.k_proj"),
    *linear("attention/value", f"{_L}.self_attn.v_proj"),
    *linear("attention/out", f"{_L}.self_attn.o_proj"),
    *norm("attention/query_norm", f"{_L}.self_attn.q_norm"),
    *norm("attention/key_norm", f"{_L}.self_attn.k_norm"),
)
_MLP = (
    *linear("mlp/gate", f"{_L}.mlp.gate_proj"),
    *linear("mlp/up", f"{_L}.mlp.up_proj"),
    *linear("mlp/down", f"{_L}.mlp.down_proj"),
)
_NORMS = (
    *norm("mixer_norm", f"{_L}.input_layernorm"),
    *norm("mlp_norm", f"{_L}.post_attention_layernorm"),
)

LLAMA = (*_EMBED, *_ATTENTION, *_MLP, *_NORMS)
OLMO2 = (
    *_EMBED,
    *_ATTENTION,
    *_MLP,
    *norm("mixer_norm", f"{_L}.post_attention_layernorm"),
    *norm("mlp_norm", f"{_L}.post_feedforward_layernorm"),
)
GEMMA2 = (
    *_EMBED,
    *_ATTENTION,
    *_MLP,
    *norm("mixer_norm", f"{_L}.input_layernorm"),
    *norm("mixer_output_norm", f"{_L}.post_attention_layernorm"),
    *norm("mlp_norm", f"{_L}.pre_feedforward_layernorm"),
    *norm("mlp_output_norm", f"{_L}.post_feedforward_layernorm"),
)
PHI3 = (
    *_EMBED,
    *_NORMS,
    *linear("attention/query", f"{_L}.self_attn.qkv_proj", part=0),
    *linear("attention/key", f"{_L}.self_attn.qkv_proj", part=1),
    *linear("attention/value", f"{_L}.self_attn.qkv_proj", part=2),
    *linear("attention/out", f"{_L}.self_attn.o_proj"),
    *linear("mlp/gate", f"{_L}.mlp.gate_up_proj", part=0),
    *linear("mlp/up", f"{_L}.mlp.gate_up_proj", part=1),
    *linear("mlp/down", f"{_L}.mlp.down_proj"),
)

_MOE = (
    *linear("moe/router", f"{_L}.mlp.gate"),
    *linear("moe/experts_gate", f"{_L}.mlp.experts.{{}}.gate_proj"),
    *linear("moe/experts_up", f"{_L}.mlp.experts.{{}}.up_proj"),
    *linear("moe/experts_down", f"{_L}.mlp.experts.{{}}.down_proj"),
)
QWEN3_MOE = (*LLAMA, *_MOE)  # also OLMoE's
MIXTRAL = (
    *_EMBED,
    *_ATTENTION,
    *_NORMS,
    *linear("moe/router", f"{_L}.block_sparse_moe.gate"),
    *linear("moe/experts_gate", f"{_L}.block_sparse_moe.experts.{{}}.w1"),
    *linear("moe/experts_up", f"{_L}.block_sparse_moe.experts.{{}}.w3"),
    *linear("moe/experts_down", f"{_L}.block_sparse_moe.experts.{{}}.w2"),
)
GPT_OSS = (
    *_EMBED,
    *_ATTENTION,
    *_NORMS,
    Row("attention/sinks", f"{_L}.self_attn.sinks", "vector"),
    *linear("moe/router", f"{_L}.mlp.router"),
    *(
        Row(f"moe/experts_{ours}/{leaf}", f"{_L}.mlp.experts.{theirs}", "table", *place)
        for ours, proj, place in (
            ("gate", "gate_up_proj", (0, "units")),
            ("up", "gate_up_proj", (1, "units")),
            ("down", "down_proj", ()),
        )
        for leaf, theirs in (("kernel", proj), ("bias", f"{proj}_bias"))
    ),
)
DEEPSEEK = (
    *_EMBED,
    *_NORMS,
    *_MLP,
    *_MOE,
    Row("moe/choice_bias", f"{_L}.mlp.gate.e_score_correction_bias", "vector"),
    *linear("moe/shared/gate", f"{_L}.mlp.shared_experts.gate_proj"),
    *linear("moe/shared/up", f"{_L}.mlp.shared_experts.up_proj"),
    *linear("moe/shared/down", f"{_L}.mlp.shared_experts.down_proj"),
    *linear("attention/query_latent", f"{_L}.self_attn.q_a_proj"),
    *norm("attention/query_latent_norm", f"{_L}.self_attn.q_a_layernorm"),
    *(
        row
        for ours, theirs in (("query", "q_proj"), ("query_up", "q_b_proj"))
        for part, name, layout in ((0, "nope", "linear"), (1, "rope", "turned"))
        for row in linear(
            f"attention/{ours}_{name}",
            f"{_L}.self_attn.{theirs}",
            layout,  # type: ignore[arg-type]
            part,
            "heads",
        )
    ),
    *linear("attention/latent", f"{_L}.self_attn.kv_a_proj_with_mqa", part=0),
    *linear("attention/key_rope", f"{_L}.self_attn.kv_a_proj_with_mqa", "turned", 1),
    *norm("attention/latent_norm", f"{_L}.self_attn.kv_a_layernorm"),
    *linear("attention/key", f"{_L}.self_attn.kv_b_proj", part=0, turns="heads"),
    *linear("attention/value", f"{_L}.self_attn.kv_b_proj", part=1, turns="heads"),
    *linear("attention/out", f"{_L}.self_attn.o_proj"),
)

_H = "transformer.h.{}"
GPT2 = (
    Row("embedding", "transformer.wte.weight", "table"),
    Row("position_embedding", "transformer.wpe.weight", "table"),
    *norm("final_norm", "transformer.ln_f"),
    *norm("mixer_norm", f"{_H}.ln_1"),
    *norm("mlp_norm", f"{_H}.ln_2"),
    *linear("attention/query", f"{_H}.attn.c_attn", "conv", 0),
    *linear("attention/key", f"{_H}.attn.c_attn", "conv", 1),
    *linear("attention/value", f"{_H}.attn.c_attn", "conv", 2),
    *linear("attention/out", f"{_H}.attn.c_proj", "conv"),
    *linear("mlp/up", f"{_H}.mlp.c_fc", "conv"),
    *linear("mlp/down", f"{_H}.mlp.c_proj", "conv"),
)

_N = "gpt_neox.layers.{}"
GPT_NEOX = (
    Row("embedding", "gpt_neox.embed_in.weight", "table"),
    Row("head", "embed_out.weight", "table"),
    *norm("final_norm", "gpt_neox.final_layer_norm"),
    *norm("mixer_norm", f"{_N}.input_layernorm"),
    *norm("mlp_norm", f"{_N}.post_attention_layernorm"),
    *linear("attention/query", f"{_N}.attention.query_key_value", "linear", 0, "heads"),
    *linear("attention/key", f"{_N}.attention.query_key_value", "linear", 1, "heads"),
    *linear("attention/value", f"{_N}.attention.query_key_value", "linear", 2, "heads"),
    *linear("attention/out", f"{_N}.attention.dense"),
    *linear("mlp/up", f"{_N}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_N}.mlp.dense_4h_to_h"),
)

_B = "encoder.layer.{}"
BERT = (
    Row("embedding", "embeddings.word_embeddings.weight", "table"),
    Row("position_embedding", "embeddings.position_embeddings.weight", "table"),
    Row("type_embedding", "embeddings.token_type_embeddings.weight", "table"),
    *norm("embedding_norm", "embeddings.LayerNorm"),
    *norm("mixer_norm", f"{_B}.attention.output.LayerNorm"),
    *norm("mlp_norm", f"{_B}.output.LayerNorm"),
    *linear("attention/query", f"{_B}.attention.self.query"),
    *linear("attention/key", f"{_B}.attention.self.key"),
    *linear("attention/value", f"{_B}.attention.self.value"),
    *linear("attention/out", f"{_B}.attention.output.dense"),
    *linear("mlp/up", f"{_B}.intermediate.dense"),
    *linear("mlp/down", f"{_B}.output.dense"),
)
