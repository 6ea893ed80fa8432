"""From a config to objects: the one place where the parts of lmx meet.

`build` answers, in order: which text and tokens, which model, which devices, what is
minimised and how, and compiles nothing. `Experiment.compile_step` compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from lmx.core.errors import DataError, UserError, pick
from lmx.core.model_schema import Architecture
from lmx.core.schema import ExperimentConfig, OptimConfig
from lmx.data.pipeline import Corpus, prepare
from lmx.evaluate.compression import COMPRESSORS
from lmx.finetune.adapter import Adapter, is_adapted
from lmx.finetune.base import base_facts
from lmx.finetune.objectives import OBJECTIVES
from lmx.finetune.parts import Parts
from lmx.models.block import MIXERS
from lmx.models.decoder import Decoder, abstract_params
from lmx.models.kernels import micro_batches, select_form
from lmx.models.moe import dropless
from lmx.models.sizes import resolve
from lmx.parallel.mesh import make_mesh
from lmx.parallel.partition import Partition
from lmx.parallel.rules import RULES
from lmx.run.start import start_params, teacher_of, teacher_params
from lmx.training.checkpoints import Checkpoints
from lmx.training.losses import vocabulary_pieces
from lmx.training.metrics import WRITERS
from lmx.training.objective import Objective, check_groups, check_options
from lmx.training.optimizers import Optimizer, make_optimizer
from lmx.training.state import (
    TrainState,
    init_params,
    saved,
    state_of,
    weights_to_use,
)
from lmx.training.step import eval_step, train_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, made from one config whose numbers are resolved.

    Attributes:
      abstract_state: shapes, dtypes and shardings of the state.
      abstract_params: those of the whole model, which parts into what trains and what
        does not where there is an `adapter`.
      parts: how what trains and what does not make what the objective takes.
      base: which model an adapter changes, or preferences are compared with, as
        checkpoints remember it.
      teacher: shapes, dtypes and shardings of the parameters of a teacher.
      teacher_base: which model that is.
    """

    config: ExperimentConfig
    model: Architecture
    corpus: Corpus
    partition: Partition
    objective: Objective
    optimizer: Optimizer
    abstract_state: TrainState
    abstract_params: Any
    parts: Parts
    base: Mapping[str, Any] | None = None
    teacher: Any = None
    teacher_base: Mapping[str, Any] | None = None

    @property
    def adapter(self) -> Adapter | None:
        """What of the model trains; None is all."""
        return self.parts.adapter

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers of how it was made."""
        from lmx import __version__

        return {
            "lmx": __version__,
            "tokenizer": self.corpus.tokenizer.fingerprint,
            "data": self.corpus.digest,
            **({} if self.base is None else {"base": self.base}),
            **({} if self.teacher_base is None else {"teacher": self.teacher_base}),
        }

    @property
    def micro_batches(self) -> int:
        """The number of pieces that a step's batch is cut into."""
        if self.config.optim.accumulate_steps is not None:
            return self.config.optim.accumulate_steps
        rows = self.config.data.batch_size
        return micro_batches(
            rows // self.partition.batch_parts,
            rows * self.model.context_length,
            form=select_form(self.model.kernels),
        )

    def init(self) -> TrainState:
        """Returns the first state, initialised on the devices it belongs to."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        key = jax.random.key(self.config.seed)
        params = start_params(self.config, self.abstract_params, self.base)
        begin = partial(first_state, self.parts, self.optimizer, self.config.optim)
        if params is None:

            def make(key, teacher):
                return begin(key, init_params(key, Decoder(self.model)), teacher)

            return self.partition.jit(make, out=shardings)(key, self._taught())
        return self.partition.jit(begin, out=shardings)(key, params, self._taught())

    def restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """Returns the state of a checkpoint, with the weights that it does not hold."""
        state = checkpoints.restore(step, saved(self.abstract_state))
        if self.abstract_state.frozen is None:
            return state
        params = None
        if self.base is not None:
            params = start_params(self.config, self.abstract_params, self.base)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state.frozen)
        make = self.partition.jit(self.parts.frozen, out=shardings)
        return dataclasses.replace(state, frozen=make(params, self._taught()))

    def _taught(self) -> Any:
        """Returns the parameters of the teacher, None where there is none."""
        if self.teacher is None:
            return None
        return teacher_params(self.config, self.teacher, self.teacher_base)

    def joined(self, state: TrainState) -> Any:
        """Returns the parameters to evaluate, as the objective takes them."""
        return self.parts.join(weights_to_use(state), state.frozen)

    def merged(self, state: TrainState) -> Any:
        """Returns the parameters to write text with: plain arrays."""
        params = weights_to_use(state)
        if self.adapter is None:
            return params
        return self.partition.jit(self.parts.merge)(params, state.frozen)

    def step_function(self) -> Callable:
        """Returns the training step to call: jit over the mesh, or pmap."""
        pieces = self.micro_batches
        optim = dataclasses.replace(self.config.optim, accumulate_steps=pieces)
        step = partial(
            train_step,
            objective=self.objective,
            optimizer=self.optimizer,
            config=optim,
            join=self.parts.join,
        )
        if self.config.parallel.step == "pmap":
            return _pmapped(step)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        return self.partition.jit(
            step, out=(shardings, self.partition.replicated), donate=(0,)
        )

    @functools.cached_property
    def eval_function(self) -> Callable:
        """The compiled `(params, batch) → sums of each row`."""
        taught = teacher_of(self.config, self.corpus.tokenizer)
        objective = make_objective(self.config, dropless(self.model), taught)
        step = partial(eval_step, objective=objective)
        return self.partition.jit(step, out=self.partition.replicated)


def build(
    config: ExperimentConfig, *, report: Callable[[str], None] = print
) -> Experiment:
    """Returns the experiment of `config`; raises `UserError`s before anything runs."""
    check_shape(config)
    mesh = make_mesh(config.parallel)
    if config.parallel.step == "pmap" and mesh.shape["data"] != mesh.size:
        raise UserError(
            "parallel.step='pmap' splits the batch only: set parallel.fsdp=1, "
            "parallel.expert=1 and parallel.tensor=1, or parallel.step='jit'"
        )
    optimizer = make_optimizer(config.optim, steps=config.steps)
    corpus = prepare(
        config.data,
        context_length=config.model.context_length,
        seed=config.seed,
        steps=config.steps,
        report=report,
    )
    model = architecture(config, corpus.tokenizer.vocab_size)
    config = dataclasses.replace(config, model=model)
    taught = teacher_of(config, corpus.tokenizer)
    objective = make_objective(config, model, taught)
    check_corpus(objective, corpus, name=config.objective.name)
    if model.attention == "prefix":
        check_prompts(corpus)
    partition = Partition(mesh, pick(RULES, config.parallel.rules, "rules"))
    adapter = Adapter(config.adapter, model) if is_adapted(config.adapter) else None
    parts = Parts(adapter, objective.against)
    boxed = whole = abstract_params(model)
    if adapter is not None:
        partition.check(boxed, partition.batch_parts)
        boxed = adapter.boxed()
    pieces = config.optim.accumulate_steps or 1
    partition.check(boxed, config.data.batch_size // pieces)
    vocabulary_pieces(model.vocab_size, config.objective.vocab_chunks)
    begin = partial(first_state, parts, optimizer, config.optim)
    params = placed(partition, nn.meta.unbox(whole), whole)
    teacher = None
    if taught is not None:
        boxed_teacher = abstract_params(taught)
        teacher = placed(partition, nn.meta.unbox(boxed_teacher), boxed_teacher)
    state = jax.eval_shape(begin, jax.random.key(0), params, teacher)
    state = placed(partition, state, boxed)
    if teacher is not None:
        state = dataclasses.replace(
            state, frozen={**state.frozen, "reference": teacher}
        )
    return Experiment(
        config=config,
        model=model,
        corpus=corpus,
        partition=partition,
        objective=objective,
        optimizer=optimizer,
        abstract_state=state,
        abstract_params=params,
        parts=parts,
        base=base_facts(str(config.model.init_from)) if parts.need_start else None,
        teacher=teacher,
        teacher_base=teacher and base_facts(str(config.objective.teacher)),
    )


def check_corpus(objective: Objective, corpus: Corpus, *, name: str) -> None:
    """Raises a `UserError` for examples or rows that nothing can be learned of."""
    groups = {source.name: source.train.group for source in corpus.sources}
    check_groups(objective, groups, name=name)
    pairs = sum(s.train.num_documents // 2 for s in corpus.sources)
    rows = corpus.train_batches().rows
    if name == "kto" and len(rows) >= pairs - rows.waste.left_out:
        raise UserError(
            "objective.name='kto' takes completions of other prompts in a row as its "
            f"baseline, and each row of {corpus.context_length} has a single pair; "
            "raise model.context_length, or choose 'dpo'"
        )


def first_state(
    parts: Parts, optimizer: Optimizer, config: OptimConfig, key, params, teacher=None
) -> TrainState:
    """Returns the state that starts from `params`; `key` draws what they lack."""
    trained, frozen = parts.trained(key, params), parts.frozen(params, teacher)
    return state_of(trained, optimizer, config, frozen=frozen)


def placed(partition: Partition, shapes: Any, boxed: Any) -> Any:
    """Returns abstract values with the shardings of the parameters they mirror."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        partition.state_shardings(shapes, boxed),
    )


def make_objective(
    config: ExperimentConfig, model: Architecture, teacher: Architecture | None
) -> Objective:
    """Returns what `config` minimises, of `model` and where it has one its teacher."""
    make = pick(OBJECTIVES, config.objective.name, "objective")
    check_options(make, config.objective)
    others = () if teacher is None else (teacher,)
    return make(model, config.objective, *others)


def check_prompts(corpus: Corpus) -> None:
    """Raises a `UserError` where no text has a prompt: none would be learned."""
    if all(source.train.weights is None for source in corpus.sources):
        raise UserError(
            "model.attention='prefix' reads prompts in both directions, and "
            f"{corpus.config.path} has none: every token has a loss; build a source "
            "with format='prefix' or another of examples, or set it to 'causal'"
        )


def check_shape(config: ExperimentConfig) -> None:
    """Raises a `UserError` for an impossible model or an unknown name."""
    for mixer in config.model.pattern:
        pick(MIXERS, mixer, "mixer in model.pattern")
    for name in config.evals.compressors:
        pick(COMPRESSORS, name, "compressor in evals.compressors")
    for name in config.log.writers:
        pick(WRITERS, name, "log.writers entry")
    resolve(config.model, vocab_size=config.model.vocab_size or config.data.vocab_size)


def architecture(config: ExperimentConfig, vocab_size: int) -> Architecture:
    """Returns the model of `config` for a tokenizer of `vocab_size`."""
    model = resolve(config.model, vocab_size=vocab_size)
    if model.vocab_size < vocab_size:
        raise DataError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's "
            f"{vocab_size}; raise it, or set it to None"
        )
    return model


def _pmapped(step: Callable) -> Callable:
    """Returns `step` compiled by pmap, with whole arrays in and out like jit's."""

    def local_step(state, batch):
        return step(state, batch, all_reduce=lambda sums: lax.psum(sums, "devices"))

    compiled = jax.pmap(
        local_step, axis_name="devices", in_axes=(None, 0), out_axes=None
    )

    def call(state, batch):
        devices = jax.local_device_count()
        rows = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
        return compiled(state, rows)

    return call
