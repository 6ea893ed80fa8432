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


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """Returns the rows of a normalisation: its scale, and its bias if it has one."""
    return (
        Row(f"{ours}/scale", f"{theirs}.weight", "vector"),
        Row(f"{ours}/bias", f"{theirs}.bias", "vector"),
    )


def linear(
    ours: str,
    theirs: str,
    layout: Layout = "linear",
    part: int = 0,
    turns: Turns = "whole",
) -> tuple[Row, Row]:
    """Returns the rows of a linear layer: its kernel, and its bias if it has one."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", layout, part, turns),
        Row(f"{ours}/bias", f"{theirs}.bias", "vector", part, turns),
    )


# llama.cpp's names for models of the Llama kind; only `turned` depends on which one.
_GGUF = (
    Row("embedding", "token_embd.weight", "table"),
    Row("head", "output.weight", "table"),
    *norm("final_norm", "output_norm"),
    *norm("mixer_norm", "blk.{}.attn_norm"),
    *norm("mlp_norm", "blk.{}.ffn_norm"),
    *linear("attention/value", "blk.{}.attn_v"),
    *linear("attention/out", "blk.{}.attn_output"),
    *norm("attention/query_norm", "blk.{}.attn_q_norm"),
    *norm("attention/key_norm", "blk.{}.attn_k_norm"),
    *linear("mlp/gate", "blk.{}.ffn_gate"),
    *linear("mlp/up", "blk.{}.ffn_up"),
    *linear("mlp/down", "blk.{}.ffn_down"),
)
GGUF_LLAMA = (
    *_GGUF,
    *linear("attention/query", "blk.{}.attn_q", "turned"),
    *linear("attention/key", "blk.{}.attn_k", "turned"),
)
GGUF_QWEN = (
    *_GGUF,
    *linear("attention/query", "blk.{}.attn_q"),
    *linear("attention/key", "blk.{}.attn_k"),
)
GGUF_GPT2 = (
    *_GGUF,
    Row("position_embedding", "position_embd.weight", "table"),
    *linear("attention/query", "blk.{}.attn_qkv", part=0),
    *linear("attention/key", "blk.{}.attn_qkv", part=1),
    *linear("attention/value", "blk.{}.attn_qkv", part=2),
)

# Tensors that hold no parameter: masks and tables that older files stored.
BUFFERS = (
    r"^embeddings\.position_ids$",
    r"^rope_freqs\.weight$",  # of GGUF: read with the config
    r"\.(attn|attention)\.(masked_)?bias$",
    r"\.rotary_emb\.inv_freq$",
)
