"""Which published tensor holds which parameter: one short table per naming scheme.

A row says how the parameter of one layer (or, without `{}`, of the whole model) is
called and laid out elsewhere. Several rows may share a published tensor: each is then
a part of its outputs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Layout = Literal["table", "vector", "linear", "conv", "turned"]
Turns = Literal["whole", "heads", "units"]


class Row(NamedTuple):
    """One parameter, here and there.

    Attributes:
      ours: its path; inside a block without `blocks/i/`.
      theirs: its published name; the first `{}` is the layer, the second the expert.
      layout: 'table' and 'vector' as they are; 'linear' is [out, in], as in
        torch.nn.Linear; 'conv' is [in, out], as in GPT-2; 'turned' is 'linear' with
        the rotary pairs of each head interleaved, as llama.cpp keeps queries and keys.
      part: its place among the parameters that share a published tensor.
      turns: how those take turns along its outputs: each whole, head by head, or unit
        by unit.
    """

    ours: str
    theirs: str
    layout: Layout
    part: int = 0
    turns: Turns = "whole"


LLAMA = (
    Row("embedding", "model.embed_tokens.weight", "table"),
    Row("head", "lm_head.weight", "table"),
    Row("final_norm/scale", "model.norm.weight", "vector"),
    Row("mixer_norm/scale", "model.layers.{}.input_layernorm.weight", "vector"),
    Row("mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", "vector"),
    *(
        Row(
            f"attention/{ours}/kernel",
            f"model.layers.{{}}.self_attn.{x}.weight",
            "linear",
        )
        for ours, x in (
            ("query", "q_proj"),
            ("key", "k_proj"),
            ("value", "v_proj"),
            ("out", "o_proj"),
        )
    ),
    *(
        Row(f"attention/{ours}/bias", f"model.layers.{{}}.self_attn.{x}.bias", "vector")
        for ours, x in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    ),
    Row(
        "attention/query_norm/scale",
        "model.layers.{}.self_attn.q_norm.weight",
        "vector",
    ),
    Row(
        "attention/key_norm/scale", "model.layers.{}.self_attn.k_norm.weight", "vector"
    ),
    Row("mlp/gate/kernel", "model.layers.{}.mlp.gate_proj.weight", "linear"),
    Row("mlp/up/kernel", "model.layers.{}.mlp.up_proj.weight", "linear"),
    Row("mlp/down/kernel", "model.layers.{}.mlp.down_proj.weight", "linear"),
)

_BLOCK = "model.layers.{}."
OLMO2 = (
    *(row for row in LLAMA if row.ours not in ("mixer_norm/scale", "mlp_norm/scale")),
    Row("mixer_norm/scale", f"{_BLOCK}post_attention_layernorm.weight", "vector"),
    Row("mlp_norm/scale", f"{_BLOCK}post_feedforward_layernorm.weight", "vector"),
)
GEMMA2 = (
    *(row for row in LLAMA if row.ours != "mlp_norm/scale"),
    Row(
        "mixer_output_norm/scale", f"{_BLOCK}post_attention_layernorm.weight", "vector"
    ),
    Row("mlp_norm/scale", f"{_BLOCK}pre_feedforward_layernorm.weight", "vector"),
    Row(
        "mlp_output_norm/scale", f"{_BLOCK}post_feedforward_layernorm.weight", "vector"
    ),
)

GPT2 = (
    Row("embedding", "transformer.wte.weight", "table"),
    Row("position_embedding", "transformer.wpe.weight", "table"),
    Row("final_norm/scale", "transformer.ln_f.weight", "vector"),
    Row("final_norm/bias", "transformer.ln_f.bias", "vector"),
    Row("mixer_norm/scale", "transformer.h.{}.ln_1.weight", "vector"),
    Row("mixer_norm/bias", "transformer.h.{}.ln_1.bias", "vector"),
    Row("mlp_norm/scale", "transformer.h.{}.ln_2.weight", "vector"),
    Row("mlp_norm/bias", "transformer.h.{}.ln_2.bias", "vector"),
    *(
        row
        for i, name in enumerate(("query", "key", "value"))
        for row in (
            Row(
                f"attention/{name}/kernel",
                "transformer.h.{}.attn.c_attn.weight",
                "conv",
                i,
            ),
            Row(
                f"attention/{name}/bias",
                "transformer.h.{}.attn.c_attn.bias",
                "vector",
                i,
            ),
        )
    ),
    Row("attention/out/kernel", "transformer.h.{}.attn.c_proj.weight", "conv"),
    Row("attention/out/bias", "transformer.h.{}.attn.c_proj.bias", "vector"),
    Row("mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight", "conv"),
    Row("mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias", "vector"),
    Row("mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight", "conv"),
    Row("mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias", "vector"),
)

_LINEAR: tuple[tuple[str, str, Layout], ...] = (
    ("kernel", "weight", "linear"),
    ("bias", "bias", "vector"),
)

# llama.cpp's names for models of the Llama kind; only `turned` depends on which one.
_GGUF = (
    Row("embedding", "token_embd.weight", "table"),
    Row("head", "output.weight", "table"),
    Row("final_norm/scale", "output_norm.weight", "vector"),
    Row("mixer_norm/scale", "blk.{}.attn_norm.weight", "vector"),
    Row("mlp_norm/scale", "blk.{}.ffn_norm.weight", "vector"),
    Row("attention/query/bias", "blk.{}.attn_q.bias", "vector"),
    Row("attention/key/bias", "blk.{}.attn_k.bias", "vector"),
    Row("attention/value/bias", "blk.{}.attn_v.bias", "vector"),
    Row("attention/value/kernel", "blk.{}.attn_v.weight", "linear"),
    Row("attention/out/kernel", "blk.{}.attn_output.weight", "linear"),
    Row("attention/query_norm/scale", "blk.{}.attn_q_norm.weight", "vector"),
    Row("attention/key_norm/scale", "blk.{}.attn_k_norm.weight", "vector"),
    Row("mlp/gate/kernel", "blk.{}.ffn_gate.weight", "linear"),
    Row("mlp/up/kernel", "blk.{}.ffn_up.weight", "linear"),
    Row("mlp/down/kernel", "blk.{}.ffn_down.weight", "linear"),
)
GGUF_LLAMA = (
    *_GGUF,
    Row("attention/query/kernel", "blk.{}.attn_q.weight", "turned"),
    Row("attention/key/kernel", "blk.{}.attn_k.weight", "turned"),
)
GGUF_QWEN = (
    *_GGUF,
    Row("attention/query/kernel", "blk.{}.attn_q.weight", "linear"),
    Row("attention/key/kernel", "blk.{}.attn_k.weight", "linear"),
)

GGUF_GPT2 = (
    Row("embedding", "token_embd.weight", "table"),
    Row("position_embedding", "position_embd.weight", "table"),
    *(
        Row(f"{ours}/{leaf}", f"{theirs}.{leaf_there}", "vector")
        for ours, theirs in (
            ("final_norm", "output_norm"),
            ("mixer_norm", "blk.{}.attn_norm"),
            ("mlp_norm", "blk.{}.ffn_norm"),
        )
        for leaf, leaf_there in (("scale", "weight"), ("bias", "bias"))
    ),
    *(
        Row(f"attention/{ours}/{leaf}", f"blk.{{}}.attn_qkv.{there}", layout, i)
        for i, ours in enumerate(("query", "key", "value"))
        for leaf, there, layout in _LINEAR
    ),
    *(
        Row(f"{ours}/{leaf}", f"blk.{{}}.{theirs}.{there}", layout)
        for ours, theirs in (
            ("attention/out", "attn_output"),
            ("mlp/up", "ffn_up"),
            ("mlp/down", "ffn_down"),
        )
        for leaf, there, layout in _LINEAR
    ),
)

_BERT_LAYER = "encoder.layer.{}"
BERT = (
    Row("embedding", "embeddings.word_embeddings.weight", "table"),
    Row("position_embedding", "embeddings.position_embeddings.weight", "table"),
    Row("type_embedding", "embeddings.token_type_embeddings.weight", "table"),
    *(
        Row(f"{ours}/{leaf}", f"{theirs}.LayerNorm.{there}", "vector")
        for ours, theirs in (
            ("embedding_norm", "embeddings"),
            ("mixer_norm", f"{_BERT_LAYER}.attention.output"),
            ("mlp_norm", f"{_BERT_LAYER}.output"),
        )
        for leaf, there in (("scale", "weight"), ("bias", "bias"))
    ),
    *(
        Row(f"{ours}/{leaf}", f"{_BERT_LAYER}.{theirs}.{there}", layout)
        for ours, theirs in (
            ("attention/query", "attention.self.query"),
            ("attention/key", "attention.self.key"),
            ("attention/value", "attention.self.value"),
            ("attention/out", "attention.output.dense"),
            ("mlp/up", "intermediate.dense"),
            ("mlp/down", "output.dense"),
        )
        for leaf, there, layout in _LINEAR
    ),
)

# Tensors that hold no parameter: masks and tables that older files stored.
BUFFERS = (
    r"^embeddings\.position_ids$",
    r"^rope_freqs\.weight$",  # of GGUF: read with the config
    r"\.attn\.(masked_)?bias$",
    r"\.rotary_emb\.inv_freq$",
)

# Parameters of parts that no layer of lmx has, and why: an import names them, and an
# export of the model lacks them.
UNUSED = {
    r"^pooler\.dense\.(weight|bias)$": "BERT's pooler guesses the next sentence; "
    "embeddings are pooled from hidden states",
}
