"""A step of an adapter on 8 devices is that of one, sharded over any mesh or by pmap.

The devices are fake ones of the CPU backend, which must exist before JAX starts: this
file runs itself as a program, which prints what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]  # data, fsdp, tensor
CASES = {
    "lora": {"method": "lora"},
    "dora": {"method": "dora", "quantize": "int8", "train": ("norm",)},
}


def main():
    import flax.linen as nn
    import jax

    from lmx.core.model_schema import ModelConfig
    from lmx.core.schema import (
        AdapterConfig,
        ObjectiveConfig,
        OptimConfig,
        ParallelConfig,
    )
    from lmx.core.trees import flatten_with_names
    from lmx.finetune.adapter import Adapter
    from lmx.finetune.parts import Parts
    from lmx.inputs.batch import Batch
    from lmx.models.decoder import abstract_params
    from lmx.models.sizes import resolve
    from lmx.parallel.mesh import make_mesh
    from lmx.parallel.partition import Partition
    from lmx.parallel.rules import DEFAULT
    from lmx.run.build import _pmapped, first_state
    from lmx.training.objective import NextToken
    from lmx.training.optimizers import make_optimizer
    from lmx.training.step import train_step

    model = resolve(
        ModelConfig(
            vocab_size=64,
            context_length=12,
            width=32,
            num_layers=2,
            num_heads=8,
            num_kv_heads=4,
            mlp_dim=32,
            compute_dtype="float32",
            layer_loop="scan",
        )
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (16, 13)).astype(np.int32)
    batch = Batch(
        tokens[:, :-1],
        tokens[:, 1:],
        rng.random((16, 12)).astype(np.float32),
        np.ones((16, 12), np.int32),
        np.broadcast_to(np.arange(12, dtype=np.int32), (16, 12)),
    )
    shapes = nn.meta.unbox(abstract_params(model))
    base = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes
    )
    # Sums of squares: the optimizer's first step then is the gradient, not its sign.
    optim = OptimConfig(epsilon=1e3, weight_decay=0.0, warmup_steps=0, clip_norm=None)
    optim = OptimConfig(**{**vars(optim), "learning_rate": 1e3, "accumulate_steps": 2})
    optimizer = make_optimizer(optim, steps=10)
    found = {}
    for name, options in CASES.items():
        adapter = Adapter(AdapterConfig(rank=3, **options), model)
        state = first_state(
            Parts(adapter, None), optimizer, optim, jax.random.key(0), base
        )
        noise = jax.tree.map(
            lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), state.params
        )
        state = state.replace(params=noise)
        step = partial(
            train_step,
            objective=NextToken(model, ObjectiveConfig()),
            optimizer=optimizer,
            config=optim,
            join=adapter.join,
        )

        def changes(result, start=noise):
            new, metrics = result
            moved = jax.tree.map(lambda x, y: np.asarray(x) - y, new.params, start)
            leaves = {n: np.ravel(x).tolist() for n, x in flatten_with_names(moved)}
            return {"loss": float(metrics["loss"]), "leaves": leaves}

        found[name] = {"one": changes(jax.jit(step)(state, batch))}
        found[name]["pmap"] = changes(_pmapped(step)(state, batch))
        for mesh in MESHES:
            data, fsdp, tensor = mesh
            config = ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
            partition = Partition(make_mesh(config), DEFAULT)
            boxed = adapter.boxed()
            partition.check(boxed, 8)
            to = partition.state_shardings(state, boxed)
            placed = jax.device_put(state, to), partition.place_batch(batch)
            run = partition.jit(step, out=(to, partition.replicated))
            found[name][str(mesh)] = changes(run(*placed))
        kernel = to.params["blocks"]["0"]["attention"]["query"]["kernel"]
        found[name]["specs"] = [str(tuple(kernel[part].spec)) for part in "ab"]
    print(json.dumps(found))


@pytest.fixture(scope="module")
def measured():
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    result = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["pmap", *map(str, MESHES)])
@pytest.mark.parametrize("name", CASES)
def test_a_step_on_eight_devices_is_that_of_one(measured, name, mesh):
    one, other = measured[name]["one"], measured[name][mesh]
    assert abs(other["loss"] / one["loss"] - 1) < 1e-5
    for leaf, wanted in one["leaves"].items():
        wanted, found = np.asarray(wanted), np.asarray(other["leaves"][leaf])
        assert np.linalg.norm(wanted) > 0, leaf
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error < 1e-3, (leaf, error)


def test_ranks_are_whole_and_sides_lie_as_the_kernel(measured):
    assert measured["lora"]["specs"] == [
        "(None, 'fsdp', None)",
        "(None, None, 'tensor')",
    ]


if __name__ == "__main__":
    main()
