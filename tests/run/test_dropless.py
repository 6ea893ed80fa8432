"""Experts of limited capacity drop tokens in training and nowhere else.

The reference is the same model without a capacity.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmx.api import LanguageModel
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ExperimentConfig, ParallelConfig
from lmx.generate.embedding import embed
from lmx.inputs.batch import Batch
from lmx.inputs.tokenizers import train_tokenizer
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve
from lmx.parallel.mesh import make_mesh
from lmx.parallel.partition import Partition
from lmx.parallel.rules import RULES
from lmx.run.build import Experiment, make_objective

FREE = resolve(
    ModelConfig(
        vocab_size=259,
        context_length=16,
        width=16,
        num_layers=1,
        num_heads=2,
        ffns=("moe",),
        num_experts=4,
        expert_dim=8,
        compute_dtype="float32",
    )
)
TIGHT = dataclasses.replace(FREE, expert_capacity=0.5)


def random_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
        nn.meta.unbox(abstract_params(FREE)),
    )


def rows():
    tokens = np.random.default_rng(1).integers(3, 259, (2, 17)).astype(np.int32)
    ones = np.ones((2, 16), np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))
    weights = ones.astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, ones, positions)


def test_logits_and_vectors_are_of_all_experts_of_a_token():
    params, ids = random_params(), rows().tokens[0].tolist()

    def seen(model):
        config = ExperimentConfig(model=model)
        lm = LanguageModel(config, params, train_tokenizer("byte", [], 259))
        return lm.logits(ids), lm.logits(ids[:5]), embed(model, params, [ids])

    for tight, free in zip(seen(TIGHT), seen(FREE), strict=True):
        np.testing.assert_array_equal(tight, free)


def test_evaluation_counts_all_tokens_where_training_drops_some():
    params, batch = random_params(), rows()

    def sums(model):
        config = ExperimentConfig(model=model)
        objective = make_objective(config, model, None)
        partition = Partition(
            make_mesh(ParallelConfig(), jax.devices()[:1]), RULES["default"]
        )
        experiment = Experiment(
            config=config,
            model=model,
            partition=partition,
            objective=objective,
            corpus=SimpleNamespace(tokenizer=None),
            optimizer=None,
            abstract_state=None,
            abstract_params=None,
            parts=None,
        )
        found = experiment.eval_function(params, batch)
        return float(found["loss"].sum()), float(objective(params, batch).values.sum())

    (tight, dropped), (free, kept) = sums(TIGHT), sums(FREE)
    assert tight == free
    assert abs(dropped - kept) > 1e-3
