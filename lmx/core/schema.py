"""Every option of an experiment, with its type, default and meaning.

An experiment file edits a ConfigDict that is made from these dataclasses
(`lmx.core.config.default_config`); after the command line had its say, each section
is turned back into its frozen dataclass here, checked, and passed on. What is named
neither here nor in `model_schema` is not an option. It imports nothing heavy, so a
misspelt key is reported before JAX has even been loaded.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmx.core.knob import knob
from lmx.core.model_schema import ModelConfig


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What of the model that training starts from is changed; by default all of it."""

    method: Literal["lora", "rslora", "dora"] | None = knob(
        None, "How kernels are changed by matrices of low rank; None changes none so."
    )
    rank: int = knob(16, "Rank of these matrices.")
    alpha: float = knob(
        32.0, "Their product is scaled by alpha / rank ('rslora': alpha / sqrt(rank))."
    )
    targets: tuple[str, ...] = knob(
        (),
        "Regular expressions; kernels whose path one of them finds are changed. () is "
        "every linear layer of the blocks, but no router.",
    )
    train: tuple[str, ...] = knob(
        (),
        "Regular expressions; parameters whose path one of them finds are trained as "
        "they are, and no others: ('bias$',) is BitFit.",
    )
    quantize: Literal["int8", "int4"] | None = knob(
        None, "Bits of the kernels that do not train ('int4' and 'lora' are QLoRA)."
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, cut into which tokens, in which rows."""

    path: str = knob(
        "python_stdlib",
        "A folder, a .txt, .jsonl or .parquet file (.gz too), a TFDS name, or a store "
        "of `lmx data build`, used with its own tokenizer; or a URL of any of them.",
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
    row_lengths: tuple[str, ...] = knob(
        (),
        "Shorter rows first, such as '128', '25%: 256', '60%: 512': from a share of "
        "the steps (or a step) on, the rows of a step are cut to that many tokens; the "
        "last is model.context_length. () is that length throughout.",
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

    name: Literal[
        "next_token", "dpo", "ipo", "kto", "orpo", "simpo", "reward", "distill"
    ] = knob(
        "next_token",
        "The objective; from 'dpo' to 'reward' they learn of preference pairs.",
    )
    beta: float | None = knob(
        None,
        "How much a preference counts beside staying near the start: β of 'dpo', 'kto' "
        "and 'simpo', τ of 'ipo', λ of 'orpo'; None is 0.1, of 'simpo' 2.",
    )
    label_smoothing: float = knob(
        0.0, "Share of pairs that 'dpo' takes to be labelled the wrong way round."
    )
    margin: float | None = knob(
        None,
        "By how much the chosen reward is to exceed the rejected one, of 'simpo' (γ) "
        "and 'reward'; None is 1 of 'simpo' and else 0.",
    )
    teacher: str | None = knob(
        None,
        "The model that 'distill' learns from, named like model.init_from; it has the "
        "same tokenizer.",
    )
    divergence: Literal["forward", "reverse"] = knob(
        "forward",
        "Of 'distill': KL(teacher ‖ model), which covers all that the teacher says, or "
        "KL(model ‖ teacher), which says only what the teacher would.",
    )
    temperature: float = knob(1.0, "That 'distill' divides the logits of both by.")
    top_k: int | None = knob(
        None, "Best logits of the teacher that 'distill' takes; None is all of them."
    )
    label_weight: float = knob(
        0.0, "Share of 'distill' that is the cross-entropy of the text itself."
    )
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
        ("norm", "bias", "position", "sinks", "magnitude"),
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
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    evals: EvalsConfig = dataclasses.field(default_factory=EvalsConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
