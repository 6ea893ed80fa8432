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
from lmx.models.block import MIXERS
from lmx.models.decoder import Decoder, abstract_params
from lmx.models.kernels import micro_batches, select_form
from lmx.models.moe import dropless
from lmx.models.sizes import resolve
from lmx.parallel.mesh import make_mesh
from lmx.parallel.partition import Partition
from lmx.parallel.rules import RULES
from lmx.run.start import start_params
from lmx.training.checkpoints import Checkpoints
from lmx.training.losses import vocabulary_pieces
from lmx.training.metrics import WRITERS
from lmx.training.objective import Objective, check_groups
from lmx.training.optimizers import Optimizer, make_optimizer
from lmx.training.state import (
    TrainState,
    init_state,
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
      base: which model an adapter changes, as its checkpoints remember it.
    """

    config: ExperimentConfig
    model: Architecture
    corpus: Corpus
    partition: Partition
    objective: Objective
    optimizer: Optimizer
    abstract_state: TrainState
    abstract_params: Any
    adapter: Adapter | None = None
    base: Mapping[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers of how it was made."""
        from lmx import __version__

        return {
            "lmx": __version__,
            "tokenizer": self.corpus.tokenizer.fingerprint,
            "data": self.corpus.digest,
            **({} if self.base is None else {"base": self.base}),
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
        if params is None:
            make = partial(
                init_state,
                decoder=Decoder(self.model),
                optimizer=self.optimizer,
                config=self.config.optim,
            )
            return self.partition.jit(make, out=shardings)(key)
        begin = partial(first_state, self.adapter, self.optimizer, self.config.optim)
        return self.partition.jit(begin, out=shardings)(key, params)

    def restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """Returns the state of a checkpoint, with the weights that it does not hold."""
        state = checkpoints.restore(step, saved(self.abstract_state))
        if self.adapter is None:
            return state
        params = start_params(self.config, self.abstract_params, self.base)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state.frozen)
        make = self.partition.jit(self.adapter.frozen, out=shardings)
        return dataclasses.replace(state, frozen=make(params))

    def joined(self, state: TrainState) -> Any:
        """Returns the parameters to evaluate, as the objective takes them."""
        return self._join(weights_to_use(state), state.frozen)

    def merged(self, state: TrainState) -> Any:
        """Returns the parameters to write text with: plain arrays."""
        params = weights_to_use(state)
        if self.adapter is None:
            return params
        return self.partition.jit(self.adapter.merge)(params, state.frozen)

    def _join(self, params: Any, frozen: Any) -> Any:
        return params if self.adapter is None else self.adapter.join(params, frozen)

    def step_function(self) -> Callable:
        """Returns the training step to call: jit over the mesh, or pmap."""
        pieces = self.micro_batches
        optim = dataclasses.replace(self.config.optim, accumulate_steps=pieces)
        step = partial(
            train_step,
            objective=self.objective,
            optimizer=self.optimizer,
            config=optim,
            join=self._join,
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
        objective = make_objective(self.config, dropless(self.model))
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
    objective = make_objective(config, model)
    groups = {source.name: source.train.group for source in corpus.sources}
    check_groups(objective, groups, name=config.objective.name)
    if model.attention == "prefix":
        check_prompts(corpus)
    partition = Partition(mesh, pick(RULES, config.parallel.rules, "rules"))
    adapter = Adapter(config.adapter, model) if is_adapted(config.adapter) else None
    boxed = whole = abstract_params(model)
    if adapter is not None:
        partition.check(boxed, partition.batch_parts)
        boxed = adapter.boxed()
    pieces = config.optim.accumulate_steps or 1
    partition.check(boxed, config.data.batch_size // pieces)
    vocabulary_pieces(model.vocab_size, config.objective.vocab_chunks)
    begin = partial(first_state, adapter, optimizer, config.optim)
    params = nn.meta.unbox(whole)
    state = jax.eval_shape(begin, jax.random.key(0), params)
    return Experiment(
        config=config,
        model=model,
        corpus=corpus,
        partition=partition,
        objective=objective,
        optimizer=optimizer,
        abstract_state=placed(state, partition.state_shardings(state, boxed)),
        abstract_params=placed(params, partition.state_shardings(params, whole)),
        adapter=adapter,
        base=None if adapter is None else base_facts(str(config.model.init_from)),
    )


def first_state(
    adapter: Adapter | None, optimizer: Optimizer, config: OptimConfig, key, params
) -> TrainState:
    """Returns the state that starts from `params`; `key` draws what they lack."""
    if adapter is None:
        return state_of(params, optimizer, config)
    trained, frozen = adapter.params(key, params), adapter.frozen(params)
    return state_of(trained, optimizer, config, frozen=frozen)


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns abstract values with their shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )


def make_objective(config: ExperimentConfig, model: Architecture) -> Objective:
    """Returns what `config` minimises, of `model`."""
    make = pick(OBJECTIVES, config.objective.name, "objective")
    return make(model, config.objective)


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
