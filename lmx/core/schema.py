"""Every option of an experiment, with its type, default and meaning, on one page.

An experiment file edits a ConfigDict that is made from these dataclasses
(`lmx.core.config.default_config`); after the command line had its say, each section
is turned back into its frozen dataclass here, checked, and passed on. What this file
does not name is not an option. It imports nothing heavy, so a misspelt key is
reported before JAX has even been loaded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

DType = Literal["float32", "bfloat16", "float16"]


def knob(default: Any, doc: str) -> Any:
    """Returns a dataclass field with a default and its one-sentence documentation."""
    return dataclasses.field(default=default, metadata={"doc": doc})


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
    attention: Literal["causal", "bidirectional"] = knob(
        "causal",
        "A token sees those before it, or those after it too: then the model reads "
        "(`lmx embed`) and cannot write.",
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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, cut into which tokens, in which rows."""

    path: str = knob(
        "python_stdlib",
        "A folder, a .txt, .jsonl or .parquet file (.gz too), a TFDS name, or a store "
        "of `lmx data build`, which is used as it is, with its own tokenizer.",
    )
    text_field: str = knob("text", "Field that holds the text in records.")
    validation_fraction: float = knob(
        0.05, "Share of documents held out where the source has no validation split."
    )
    max_documents: int | None = knob(None, "Use only so many documents.")
    tokenizer: str = knob(
        "bpe",
        "'byte', 'char', 'word', 'bpe' (byte-level) or 'unigram', trained on the "
        "training split; or the path of a tokenizer.json.",
    )
    vocab_size: int = knob(4096, "Vocabulary to train, special tokens included.")
    batch_size: int = knob(32, "Rows per step over all devices and accumulation steps.")
    packing: Literal["concat", "document", "best_fit"] = knob(
        "concat",
        "'concat' joins documents and cuts the stream into full rows, each attending "
        "only within its document; 'document' starts every document on a new row; "
        "'best_fit' fills rows with whole documents, for examples.",
    )
    mixture: tuple[str, ...] = knob(
        (),
        "Weights of a store's sources, such as 'wiki=3 code=1'; further entries hold "
        "after a share of the steps ('80%: code=1') or so many ('640: code=1'); () is "
        "by their rows.",
    )
    temperature: float = knob(
        1.0, "Weights w become w^(1/temperature): more evens sources out."
    )
    max_epochs: tuple[str, ...] = knob(
        (),
        "How often a source may come, such as 'wiki=4'; a bare '2' is for all others.",
    )
    shuffle: Literal["epoch", "none"] = knob(
        "epoch", "A new order of rows every epoch, or the stored order."
    )
    prefetch_batches: int = knob(4, "Batches prepared ahead of the step.")
    workers: int = knob(1, "Threads that prepare them.")
    cache_dir: str | None = knob(
        None, "Where prepared data is kept; None is $LMX_CACHE or ~/.cache/lmx."
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    name: Literal["next_token"] = knob("next_token", "The objective.")
    z_loss: float = knob(0.0, "Weight of log²Z, which keeps logits near zero.")
    load_balance_loss: float = knob(
        0.01, "Weight of the loss that spreads tokens over experts; 1 when even."
    )
    router_z_loss: float = knob(0.001, "Weight of log²Z of the router's logits.")
    vocab_chunks: int | None = knob(
        None,
        "Pieces of the vocabulary in which the loss is computed, so that logits never "
        "exist whole; None takes pieces of about 8,192.",
    )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How gradients become updates."""

    name: Literal[
        "adamw", "adafactor", "lion", "muon", "sophia", "schedule_free_adamw"
    ] = knob("adamw", "The optimizer; 'muon' uses AdamW for embeddings and vectors.")
    learning_rate: float = knob(3e-4, "Peak learning rate.")
    matrix_learning_rate: float | None = knob(
        None, "Peak rate of Muon's matrices; None is learning_rate."
    )
    schedule: Literal["constant", "cosine", "linear", "wsd"] = knob(
        "cosine", "Shape after warm-up; 'wsd' is warm-up, stable, decay."
    )
    warmup_steps: int = knob(100, "Steps from zero to the peak rate.")
    decay_fraction: float = knob(0.2, "Share of the steps that 'wsd' decays over.")
    final_fraction: float = knob(0.1, "Last learning rate as a share of the peak.")
    beta1: float = knob(0.9, "Decay of the first moment (momentum for Muon).")
    beta2: float = knob(0.95, "Decay of the second moment.")
    epsilon: float = knob(1e-8, "Added to the root of the second moment.")
    weight_decay: float = knob(0.1, "Decoupled weight decay.")
    no_decay: tuple[str, ...] = knob(
        ("norm", "bias", "position", "sinks"),
        "Regular expressions; a parameter whose path one of them finds is not decayed.",
    )
    clip_norm: float | None = knob(1.0, "Global gradient norm that is not exceeded.")
    accumulate_steps: int | None = knob(
        None,
        "Micro-batches that one step is cut into (None: one; a few for CPU kernels).",
    )
    ema_decay: float | None = knob(
        None, "Decay of an average of the weights, used by evaluation and generation."
    )
    max_nonfinite_steps: int = knob(
        10, "Consecutive steps with a non-finite loss or gradient before giving up."
    )
    spike_sigmas: float | None = knob(
        None,
        "Skip steps whose loss or gradient norm is so many standard deviations above "
        "the last 128 (OLMo uses 6).",
    )


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How arrays and work are spread over devices."""

    data: int = knob(-1, "Devices that split the batch; -1 takes all that are left.")
    fsdp: int = knob(1, "Devices that split batch, parameters and optimizer state.")
    tensor: int = knob(1, "Devices that split heads, hidden units and vocabulary.")
    expert: int = knob(1, "Devices that split batch and experts.")
    rules: Literal["default"] = knob("default", "Logical axis → mesh axis table.")
    step: Literal["jit", "pmap"] = knob(
        "jit", "How the step is compiled; 'pmap' is for pure data parallelism."
    )


@dataclasses.dataclass(frozen=True)
class EvalsConfig:
    """What is measured along the way and at the end."""

    every_steps: int = knob(
        200, "Steps between evaluations; the last step has one too."
    )
    batches: int = knob(8, "Validation batches per evaluation along the way.")
    final_batches: int | None = knob(
        None, "Validation batches of the last evaluation; None is the whole split."
    )
    prompts: tuple[str, ...] = knob((), "Prompts continued at the end.")
    new_tokens: int = knob(96, "Tokens written for each prompt.")
    temperature: float = knob(0.7, "Sampling temperature of those samples.")
    compressors: tuple[str, ...] = knob(
        (), "Programs to compare bits per byte with: 'gzip', 'xz', 'bz2'."
    )
    function_samples: int = knob(
        0, "Python functions to sample and parse; the share that parses is reported."
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    save_every_steps: int = knob(
        500, "Steps between checkpoints; the last step has one."
    )
    keep_last: int = knob(2, "Newest checkpoints kept.")
    keep_every_steps: int | None = knob(None, "Keep these forever.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written while it runs."""

    every_steps: int = knob(10, "Steps between records in metrics.jsonl.")
    writers: tuple[str, ...] = knob(
        ("tensorboard",), "Writers beside metrics.jsonl, which is always written."
    )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: everything that decides its result."""

    seed: int = knob(0, "Decides initial weights, data order and samples.")
    steps: int = knob(1000, "Optimizer steps.")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    evals: EvalsConfig = dataclasses.field(default_factory=EvalsConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
