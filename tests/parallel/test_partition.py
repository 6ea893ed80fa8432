"""Where arrays lie: shardings of every optimizer's state, refusals, donation.

What needs 8 devices runs in a process of its own, with fake ones of the CPU backend;
what only needs to know the mesh's shape uses an abstract mesh.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig, OptimConfig, ParallelConfig
from lmx.core.trees import flatten_with_names
from lmx.inputs.batch import Batch
from lmx.models.decoder import Decoder, abstract_params
from lmx.models.sizes import resolve
from lmx.parallel.mesh import AXES, make_mesh
from lmx.parallel.partition import Partition
from lmx.parallel.rules import DEFAULT, RULES
from lmx.training.objective import NextToken
from lmx.training.optimizers import OPTIMIZERS, make_optimizer
from lmx.training.state import init_state
from lmx.training.step import train_step

# Wide enough that Adafactor factors (from 128 on), and no two axes of one size.
WIDE = {
    "vocab_size": 144,
    "width": 128,
    "num_layers": 3,
    "num_heads": 8,
    "mlp_dim": 160,
}
NARROW = {"vocab_size": 16, "width": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}


def model_of(shape, **changes):
    return resolve(
        ModelConfig(
            **{**shape, "context_length": 4, "layer_loop": "scan", **changes},
            compute_dtype="float32",
        )
    )


def partition_of(data, fsdp, tensor, expert=1):
    shape, types = (data, fsdp, expert, tensor), (AxisType.Auto,) * len(AXES)
    return Partition(AbstractMesh(shape, AXES, axis_types=types), DEFAULT)


def make_state(model, config):
    return partial(
        init_state,
        decoder=Decoder(model),
        optimizer=make_optimizer(config, steps=10),
        config=config,
    )


def specs_of(model, config, *mesh):
    """Returns the abstract state, name → its leaf's PartitionSpec."""
    state = jax.eval_shape(make_state(model, config), jax.random.key(0))
    shardings = partition_of(*mesh).state_shardings(state, abstract_params(model))
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    return state, {name: s.spec for name, s in flatten_with_names(shardings)}


MODEL_SPECS = {
    "embedding": ("tensor", "fsdp"),
    "final_norm/scale": ("fsdp",),
    "blocks/0/mixer_norm/scale": (None, "fsdp"),
    "blocks/0/mlp_norm/scale": (None, "fsdp"),
    "blocks/0/attention/query/kernel": (None, "fsdp", "tensor", None),
    "blocks/0/attention/key/kernel": (None, "fsdp", "tensor", None),
    "blocks/0/attention/value/kernel": (None, "fsdp", "tensor", None),
    "blocks/0/attention/out/kernel": (None, "tensor", None, "fsdp"),
    "blocks/0/mlp/gate/kernel": (None, "fsdp", "tensor"),
    "blocks/0/mlp/up/kernel": (None, "fsdp", "tensor"),
    "blocks/0/mlp/down/kernel": (None, "tensor", "fsdp"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_has_a_parameters_shape_lies_like_the_parameter(name):
    config = OptimConfig(name=name, schedule="constant", ema_decay=0.9)
    model = model_of(WIDE)
    state, specs = specs_of(model, config, 1, 2, 4)
    shapes = {n: x.shape for n, x in flatten_with_names(state.params)}
    assert set(shapes) == set(MODEL_SPECS)
    followers = {n: 0 for n in shapes}
    for leaf, x in flatten_with_names(state):
        owners = [n for n in shapes if leaf.endswith("/" + n) and x.shape == shapes[n]]
        if owners:
            followers[owners[0]] += 1
            assert specs[leaf] == PartitionSpec(*MODEL_SPECS[owners[0]]), leaf
        else:
            assert specs[leaf] == PartitionSpec(), leaf
            # Counts, keys, histories and Adafactor's rows and columns; no matrix.
            assert x.size <= 3 * 160, f"{leaf} is on every device: {x.shape}"
    # The parameter, its average, and at least one moment (schedule-free has z and ν).
    assert min(followers.values()) >= 3, followers


def test_every_rule_table_knows_every_axis_of_the_models():
    axes = {"batch", "length", "features", "expert_batch"}
    latent = {"pattern": ("latent",), "kv_latent_dim": 4, "rope_dim": 2}
    for changes in (
        {"positions": "learned", "biases": "all"},
        {"head": "untied"},
        {**latent, **EXPERTS, "query_latent_dim": 4},
    ):
        boxes = jax.tree.leaves(
            abstract_params(model_of(NARROW, **changes)),
            is_leaf=lambda x: hasattr(x, "names"),
        )
        axes |= {axis for box in boxes for axis in box.names}
    for name, rules in RULES.items():
        assert axes <= set(rules), name
        used = [rules[axis] for axis in axes if isinstance(rules[axis], str)]
        assert set(used) <= set(AXES), name


EXPERTS = {"ffns": ("moe",), "num_experts": 6}


def check(*mesh, rows=8, **changes):
    model = model_of(NARROW, **changes)
    partition_of(*mesh).check(abstract_params(model), rows)


def test_a_mesh_that_divides_the_model_and_the_batch_is_accepted():
    check(2, 2, 2)
    check(1, 8, 1)


def test_dimensions_that_a_mesh_does_not_divide_are_listed_with_the_nearest():
    with pytest.raises(UserError) as error:
        check(1, 1, 8, vocab_size=15)
    lines = str(error.value).splitlines()
    assert lines[0] == "the mesh does not divide the model:"
    listed = "\n".join(lines[1:])
    assert "vocab=15 (embedding) over parallel.tensor=8; nearest that fits: 5" in listed
    assert "heads=2 (" in listed
    assert "kv_heads=2 (" in listed
    assert listed.count("nearest that fits: 2") == 2
    assert len(lines) <= 5


def test_a_width_that_fsdp_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"embed=8 .* parallel\.fsdp=3; .* fits: 2"):
        check(1, 3, 1, rows=6)


def test_experts_that_their_axis_does_not_divide_are_named():
    check(1, 1, 1, 2, **EXPERTS)
    with pytest.raises(
        UserError, match=r"experts=6 .* parallel\.expert=4; nearest that fits: 3"
    ):
        check(1, 1, 1, 4, **EXPERTS)


@pytest.mark.parametrize(("rows", "near"), [(6, 8), (9, 8), (1, 4), (3, 4)])
def test_rows_that_devices_do_not_divide_name_the_nearest(rows, near):
    with pytest.raises(UserError, match=f"{rows} rows .* nearest that do: {near}$"):
        check(2, 2, 2, rows=rows)


def run_on_8_devices():
    """Prints what one real step on (data 1, fsdp 4, tensor 2) does to memory."""
    model = model_of(NARROW)
    config = OptimConfig(ema_decay=0.9, warmup_steps=0)
    partition = Partition(make_mesh(ParallelConfig(1, 4, 2)), DEFAULT)
    optimizer = make_optimizer(config, steps=10)
    abstract = jax.eval_shape(make_state(model, config), jax.random.key(0))
    shardings = partition.state_shardings(abstract, abstract_params(model))
    state = jax.tree.map(
        lambda x, s: jax.device_put(jnp.full(x.shape, 0.1, x.dtype), s),
        abstract,
        shardings,
    )
    rng, shape = np.random.default_rng(0), (8, 4)
    ints = [rng.integers(0, 16, shape).astype(np.int32) for _ in range(2)]
    ones, place = (
        np.ones(shape, np.int32),
        np.tile(np.arange(4, dtype=np.int32), (8, 1)),
    )
    batch = partition.place_batch(Batch(*ints, ones.astype(np.float32), ones, place))
    step = partial(
        train_step,
        objective=NextToken(model, ObjectiveConfig()),
        optimizer=optimizer,
        config=config,
    )
    compiled = partition.jit(step, out=(shardings, partition.replicated), donate=(0,))
    after, metrics = compiled(state, batch)
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "rows": batch.tokens.addressable_shards[0].data.shape[0],
                "loss": float(metrics["loss"]),
                "donated": [leaf.is_deleted() for leaf in jax.tree.leaves(state)],
                "kept": [
                    a.sharding.is_equivalent_to(s, a.ndim)
                    for a, s in zip(
                        jax.tree.leaves(after), jax.tree.leaves(shardings), strict=True
                    )
                ],
                "share": {
                    name: x.addressable_shards[0].data.size / x.size
                    for name, x in flatten_with_names(after)
                },
            }
        )
    )


@pytest.fixture(scope="module")
def real():
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


def test_weights_moments_and_average_are_really_split(real):
    assert real["devices"] == 8
    split = {name: share for name, share in real["share"].items() if share < 1}
    for prefix in ("params/", "ema/", "opt_state/0/mu/", "opt_state/0/nu/"):
        assert split[f"{prefix}embedding"] == 1 / 8
        assert split[f"{prefix}blocks/0/mlp/up/kernel"] == 1 / 8
        assert split[f"{prefix}blocks/0/attention/out/kernel"] == 1 / 8
        assert split[f"{prefix}final_norm/scale"] == 1 / 4
    rest = set(real["share"]) - set(split)
    assert not any(name.startswith(("params/", "ema/")) for name in rest)


def test_each_device_has_its_own_rows_of_the_batch(real):
    assert real["rows"] == 8 // 4


def test_a_step_reuses_the_memory_of_its_state_and_keeps_its_layout(real):
    assert all(real["donated"])
    assert all(real["kept"])
    assert np.isfinite(real["loss"])


if __name__ == "__main__":
    run_on_8_devices()
