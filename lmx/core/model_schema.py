"""The options of a model, and the same with every number known.

They are the section `model` of an experiment (`schema`). What they mean for arrays is
in `lmx.models`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmx.core.knob import knob

DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape and the arithmetic of the transformer."""

    size: str | None = knob(
        None,
        "Parameter budget, such as '10m' or '1.5b'; derives each of width, num_layers "
        "and num_heads that is None.",
    )
    init_from: str | None = knob(
        None,
        "Start from the weights of this workdir, Hugging Face directory, Hub name or "
        ".gguf file; shape and tokenizer are then its own.",
    )
    vocab_size: int | None = knob(
        None, "Rows of the embedding; None takes the tokenizer's vocabulary."
    )
    context_length: int = knob(256, "Tokens that one row holds and attention can see.")
    width: int | None = knob(None, "Width D of the residual stream.")
    num_layers: int | None = knob(None, "Number of blocks.")
    num_heads: int | None = knob(None, "Query heads N.")
    num_kv_heads: int | None = knob(
        None, "Key/value heads K: N is multi-head, 1 multi-query; None is N."
    )
    head_dim: int | None = knob(None, "Head size H; None is width / num_heads.")
    mlp_dim: int | None = knob(
        None, "Hidden width F; None is 4 D, or 8/3 D (rounded to 64) for gated MLPs."
    )
    pattern: tuple[str, ...] = knob(
        ("attention",),
        "Mixer of each layer, repeated over the depth: 'attention' sees the whole "
        "context, 'window' the last `window` tokens, 'nope' all, without rotation; "
        "'latent' sees all through keys and values of few dimensions.",
    )
    ffns: tuple[str, ...] = knob(
        ("mlp",),
        "Feed-forward of each layer, repeated over the depth: 'mlp', or 'moe', a "
        "mixture of experts.",
    )
    dense_layers: int = knob(0, "First layers that have an MLP whatever ffns says.")
    sublayers: Literal["sequential", "parallel"] = knob(
        "sequential",
        "Feed-forward after the mixer, or beside it on the same input (GPT-NeoX).",
    )
    window: int | None = knob(
        None, "Tokens that a 'window' layer sees, itself included."
    )
    attention: Literal["causal", "prefix", "bidirectional"] = knob(
        "causal",
        "A token sees those before it; with 'prefix' those of a prompt (all before the "
        "first with a loss) see each other; with 'bidirectional' all do, and the model "
        "reads (`lmx embed`) and cannot write.",
    )
    positions: Literal["rope", "learned", "alibi", "none"] = knob(
        "rope", "How the model knows token order."
    )
    rope_base: float = knob(10_000.0, "Base of the rotary frequencies.")
    rope_dim: int | None = knob(
        None, "Dimensions of each head that rotate, the first ones; None is all."
    )
    window_rope_base: float | None = knob(
        None, "Base, without scaling, in 'window' layers; None is as in the others."
    )
    rope_scaling: (
        Literal["linear", "llama3", "dynamic", "yarn", "yarn_exact", "longrope"] | None
    ) = knob(
        None,
        "How rotary wavelengths are stretched for longer contexts: all ('linear'), the "
        "long ones ('llama3', 'yarn', or 'yarn_exact' without rounding to dimensions), "
        "all past the original length ('dynamic'), each by its own factor ('longrope')",
    )
    rope_factor: float = knob(1.0, "How much longer the context became by scaling.")
    rope_original_length: int | None = knob(
        None, "Context that scaling (but for 'linear') starts from."
    )
    rope_turns: tuple[float, ...] | None = knob(
        None,
        "Turns in the original context up to which a wavelength is stretched, and from "
        "which it is kept; None is (1, 4) for 'llama3' and (1, 32) for 'yarn'.",
    )
    rope_attention_factor: float | None = knob(
        None, "Factor on rotated vectors of 'yarn' and 'longrope'; None is theirs."
    )
    rope_short_factors: tuple[float, ...] = knob(
        (), "Factor of each wavelength up to the original length ('longrope')."
    )
    rope_long_factors: tuple[float, ...] = knob(
        (), "Factor of each wavelength beyond the original length ('longrope')."
    )
    norm: Literal["rmsnorm", "layernorm", "rmsnorm_plus_one"] = knob(
        "rmsnorm",
        "Normalisation layer; 'rmsnorm_plus_one' scales by 1 + its weights (Gemma).",
    )
    norm_position: Literal["pre", "post", "output", "both"] = knob(
        "pre",
        "Normalise each sublayer's input ('pre'), its output ('output'), both, or the "
        "sum of the two ('post').",
    )
    norm_epsilon: float = knob(1e-5, "Added to the variance in every normalisation.")
    qk_norm: (
        Literal["rmsnorm", "layernorm", "rmsnorm_plus_one", "rmsnorm_all_heads"] | None
    ) = knob(
        None, "Normalisation of queries and keys: per head, or over all heads at once."
    )
    mlp: Literal[
        "gelu",
        "gelu_exact",
        "silu_gated",
        "gelu_gated",
        "silu_clamped_gated",
        "relu_squared",
    ] = knob(
        "silu_gated", "Activation of feed-forward layers, and whether it is gated."
    )
    num_experts: int = knob(0, "Experts E of each 'moe' layer.")
    experts_per_token: int = knob(2, "Experts that work on a token.")
    expert_dim: int | None = knob(None, "Hidden width of an expert; None is mlp_dim.")
    shared_experts: int = knob(0, "Experts that work on every token, beside those.")
    router: Literal[
        "softmax", "softmax_renormalized", "sigmoid", "sigmoid_renormalized"
    ] = knob(
        "softmax_renormalized",
        "Score of an expert, and whether those of the chosen are made to sum to 1; "
        "'sigmoid' adds a bias to the choice (DeepSeek-V3); no gradient reaches it.",
    )
    router_scale: float = knob(1.0, "Factor on the weights of the chosen experts.")
    expert_groups: int = knob(1, "Groups of experts, of which some are chosen first.")
    expert_groups_kept: int = knob(1, "Groups that a token may choose experts from.")
    expert_capacity: float | None = knob(
        None,
        "Room of an expert as a multiple of an even share, past which tokens of a row "
        "are dropped in training; None drops none.",
    )
    kv_latent_dim: int | None = knob(
        None, "Dimensions that 'latent' layers keep of keys and values."
    )
    query_latent_dim: int | None = knob(
        None, "Dimensions that 'latent' layers project queries through; None is none."
    )
    value_dim: int | None = knob(
        None, "Size of a value head in 'latent' layers; None is head_dim - rope_dim."
    )
    biases: Literal["none", "qkv", "attention", "all"] = knob(
        "none",
        "Linear layers that add a bias: 'qkv', those of 'attention' (and its output), "
        "or all, layer norms too.",
    )
    head: Literal["tied", "untied"] = knob(
        "tied", "Share the embedding with the output head, or give it its own matrix."
    )
    reward_head: Literal["last"] | None = knob(
        None,
        "'last' weighs the final state of a text's last token to one number: what "
        "objective.name='reward' trains, which sets it.",
    )
    embedding_scale: float | None = knob(
        None, "Factor on embeddings where they enter the stream; None is 1."
    )
    embedding_norm: Literal["rmsnorm", "layernorm", "rmsnorm_plus_one"] | None = knob(
        None, "Normalisation of embeddings where they enter the stream (BERT)."
    )
    token_types: int | None = knob(
        None, "Rows of BERT's table of token types; text of lmx is of the first."
    )
    pooling: Literal[
        "mean_unit", "first_unit", "last_unit", "mean", "first", "last"
    ] = knob(
        "mean_unit",
        "Which final hidden state of a text, or the mean of all, `lmx embed` gives; "
        "'_unit' scales it to length 1.",
    )
    attention_scale: float | None = knob(
        None, "Factor on attention scores; None is 1 / sqrt(head_dim)."
    )
    attention_sinks: Literal["learned"] | None = knob(
        None, "A learned score of each head for attending to nothing (gpt-oss)."
    )
    attention_softcap: float | None = knob(
        None, "c in c·tanh(s/c) on attention scores; None leaves them."
    )
    logit_softcap: float | None = knob(
        None, "c in c·tanh(z/c) on output logits; None leaves them."
    )
    init_scale: float = knob(
        0.02,
        "Standard deviation of initial weights; the two projections into the residual "
        "stream use init_scale / sqrt(2 · num_layers).",
    )
    param_dtype: DType = knob("float32", "Stored (master) weights.")
    compute_dtype: DType = knob(
        "bfloat16", "Inputs of matrix products; they accumulate in float32."
    )
    residual_dtype: DType = knob("float32", "The residual stream between blocks.")
    softmax_dtype: DType = knob("float32", "Attention scores and their softmax.")
    layer_loop: Literal["auto", "scan", "unroll"] = knob(
        "auto",
        "Loop over layers: 'scan' compiles one block, 'unroll' all of them; 'auto' "
        "unrolls up to 12 layers on CPU and scans otherwise. Parameters are the same.",
    )
    remat: Literal["none", "dots", "full"] = knob(
        "none",
        "What the backward pass recomputes: nothing, all but matrix products, or the "
        "whole block.",
    )
    kernels: Literal["auto", "cpu", "xla"] = knob(
        "auto",
        "Form of products, rotation and attention: plain XLA, forms that are fast on "
        "CPU, or chosen by the platform.",
    )


@dataclasses.dataclass(frozen=True)
class Architecture(ModelConfig):
    """A ModelConfig in which every derived number is known: what models are built from.

    `models.sizes.resolve` makes it; its options are those of ModelConfig.
    """

    vocab_size: int = 0
    width: int = 0
    num_layers: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    expert_dim: int = 0
    value_dim: int = 0
