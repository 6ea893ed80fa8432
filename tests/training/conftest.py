"""States and checkpoints of them, for the tests of checkpoints."""

from __future__ import annotations

import shutil
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.schema import CheckpointConfig
from lmx.training.checkpoints import Checkpoints


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any


def make_state(step=0, *, width=4, ema=False):
    """A state with NamedTuples, bfloat16, scalars, None and odd bit patterns."""
    rng = np.random.default_rng(step)
    params = {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(8, width)), jnp.float32)},
        "blocks": {
            "0": {"kernel": jnp.asarray(rng.normal(size=(width, 3)), jnp.bfloat16)}
        },
        "odd": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(
        step=jnp.int32(step),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(lambda leaf: leaf + 1, params) if ema else None,
    )


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state
    )


def open_in(path, *, report=None, **config):
    lines = [] if report is None else report
    return Checkpoints(
        path / "checkpoints",
        config=CheckpointConfig(**config),
        facts={"config": "abc"},
        report=lines.append,
    )


def save_steps(path, *steps, **config):
    with open_in(path, **config) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))
    return path / "checkpoints"


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
    """A directory with steps 1 and 2, to be copied."""
    return save_steps(tmp_path_factory.mktemp("two"), 1, 2)


@pytest.fixture
def run(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path / "checkpoints")
    return tmp_path


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())
