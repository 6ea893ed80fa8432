"""Losses of pairs, and their gradients, on 8 devices are those on one.

The devices are fake ones of the CPU backend, which must exist before JAX starts: this
file runs itself as a program, which prints what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

NAMES = ("kto", "reward")  # with a reference and other completions, or neither


def pairs(rows, length):
    """Returns rows of two pairs each, of segments of many lengths."""
    import numpy as np

    from lmx.inputs.batch import Batch

    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 5, (rows, length)), axis=1)
    segments[:, :12] = np.repeat([1, 2, 3, 4], 3)
    segments = np.sort(segments, axis=1).astype(np.int32)
    first = np.array([np.searchsorted(row, row) for row in segments])
    positions = (np.arange(length) - first).astype(np.int32)
    tokens = rng.integers(0, 64, (rows, length + 1)).astype(np.int32)
    weights = (positions > 0).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments, positions)


def main():
    from functools import partial

    import flax.linen as nn
    import jax
    import numpy as np

    from lmx.core.model_schema import ModelConfig
    from lmx.core.schema import ObjectiveConfig, ParallelConfig
    from lmx.finetune.objectives import OBJECTIVES
    from lmx.models.decoder import abstract_params
    from lmx.models.sizes import resolve
    from lmx.parallel.mesh import make_mesh
    from lmx.parallel.partition import Partition
    from lmx.parallel.rules import DEFAULT
    from lmx.training.objective import Compared
    from lmx.training.step import summed_gradient

    shape = {"width": 32, "num_layers": 1, "num_heads": 4, "mlp_dim": 32}
    model = resolve(
        ModelConfig(
            vocab_size=64,
            context_length=16,
            compute_dtype="float32",
            layer_loop="scan",
            reward_head="last",
            **shape,
        )
    )
    boxed = abstract_params(model)
    rng = np.random.default_rng(1)
    policy, start = (
        jax.tree.map(
            lambda x: 0.2 * rng.standard_normal(x.shape, np.float32),
            nn.meta.unbox(boxed),
        )
        for _ in range(2)
    )
    batch, measured = pairs(8, 16), {}
    partition = Partition(make_mesh(ParallelConfig(2, 2, 2, 1)), DEFAULT)
    shardings = partition.state_shardings(policy, boxed)
    for name in NAMES:
        objective = OBJECTIVES[name](model, ObjectiveConfig(name=name, vocab_chunks=2))

        def gradient(params, start, rows, objective=objective):
            def whole(params, rows):
                compared = Compared(params, start)
                return objective(compared if objective.against else params, rows)

            return summed_gradient(whole, params, rows)

        one = jax.device_get(jax.jit(gradient)(policy, start, batch))
        many = partition.jit(gradient, out=(shardings, partition.replicated))
        place = partial(jax.device_put, device=shardings)
        placed = place(policy), place(start), partition.place_batch(batch)
        found = jax.device_get(many(*placed))
        apart = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)),
            one,
            found,
        )
        measured[name] = max(jax.tree.leaves(apart))
    print(json.dumps(measured))


def test_pairs_on_eight_devices_are_those_on_one():
    flags = "--xla_force_host_platform_device_count=8 "
    result = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "XLA_FLAGS": flags + "--xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert set(measured) == set(NAMES)
    assert max(measured.values()) < 5e-5, measured


if __name__ == "__main__":
    main()
