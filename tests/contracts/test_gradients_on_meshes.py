"""Gradients on 8 devices are those of one, on every mesh of (data, fsdp, tensor).

The devices are fake ones of the CPU backend, which must exist before JAX starts: this
file runs itself as a program, which prints what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest

DEVICES = 8
MESHES = [
    (data, fsdp, DEVICES // data // fsdp, 1)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if DEVICES % (data * fsdp) == 0
]
EXPERT_MESHES = [(8, 1, 1, 1), (1, 1, 1, 8), (2, 1, 1, 4), (1, 2, 2, 2), (1, 1, 8, 1)]
MIN_COSINE, MAX_NORM_ERROR, MAX_LOSS_ERROR = 0.9999, 1e-4, 1e-5
ROWS, LENGTH, VOCAB = 16, 12, 64
EXPERTS = {
    "num_heads": 8,
    "ffns": ("moe",),
    "num_experts": 8,
    "expert_dim": 16,
    "shared_experts": 1,
}
# Eight key/value heads, so that `tensor` may be 8. Micro-batches in one of the styles.
STYLES = {
    "llama": {
        "pieces": 1,
        "model": {
            "num_heads": 16,
            "num_kv_heads": 8,
            "head_dim": 2,
            "head": "untied",
            "qk_norm": "rmsnorm",
            "logit_softcap": 5.0,
        },
    },
    "gpt2": {
        "pieces": 2,
        "model": {
            "num_heads": 8,
            "positions": "learned",
            "norm": "layernorm",
            "mlp": "gelu",
            "biases": "all",
        },
    },
    "latent": {
        "pieces": 1,
        "model": {
            **EXPERTS,
            "pattern": ("latent",),
            "head_dim": 6,
            "rope_dim": 2,
            "kv_latent_dim": 8,
            "query_latent_dim": 8,
            "router": "sigmoid_renormalized",
        },
    },
    "prefix": {
        "pieces": 2,
        "model": {"num_heads": 16, "num_kv_heads": 8, "attention": "prefix"},
    },
    "capacity": {"pieces": 1, "model": {**EXPERTS, "expert_capacity": 1.0}},
}


def meshes(style):
    """Returns (data, fsdp, tensor, expert) of each mesh that a style is tried on."""
    if "ffns" in STYLES[style]["model"]:
        return EXPERT_MESHES
    return MESHES[::4] if style == "prefix" else MESHES


def make(style):
    """Returns the objective, the boxed and the real parameters, and a packed batch."""
    import flax.linen as nn
    import jax
    import numpy as np

    from lmx.core.model_schema import ModelConfig
    from lmx.core.schema import ObjectiveConfig
    from lmx.inputs.batch import Batch
    from lmx.models.decoder import abstract_params
    from lmx.models.sizes import resolve
    from lmx.training.objective import NextToken

    model = resolve(
        ModelConfig(
            vocab_size=VOCAB,
            context_length=LENGTH,
            width=32,
            num_layers=2,
            mlp_dim=32,
            compute_dtype="float32",
            layer_loop="scan",
            **STYLES[style]["model"],
        )
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    starts = rng.integers(2, LENGTH, (ROWS, 1))
    place = np.arange(LENGTH)[None]
    second = place >= starts
    batch = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=(rng.random((ROWS, LENGTH)) * (place % 5 > 0)).astype(np.float32),
        segment_ids=(1 + second).astype(np.int32),
        positions=np.where(second, place - starts, place).astype(np.int32),
    )
    if style == "prefix":  # prompts of several tokens
        batch.loss_weights[batch.positions < 3] = 0
    boxed = abstract_params(model)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32),
        nn.meta.unbox(boxed),
    )
    objective = NextToken(model, ObjectiveConfig(z_loss=1e-3, vocab_chunks=2))
    return objective, boxed, params, batch


def compare(reference, result):
    """Returns the relative error of the loss, and (cosine, norm error) of each leaf."""
    import jax
    import numpy as np

    from lmx.core.trees import flatten_with_names

    grads, loss = jax.device_get((reference[0], float(reference[1]["value"])))
    found, found_loss = jax.device_get((result[0], float(result[1]["value"])))
    leaves = {}
    pairs = zip(flatten_with_names(grads), flatten_with_names(found), strict=True)
    for (name, a), (_, b) in pairs:
        a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
        norms = np.linalg.norm(a), np.linalg.norm(b)
        cosine = a @ b / max(norms[0] * norms[1], 1e-300)
        # The key bias moves no probability, that of the router no weight: their
        # gradient is rounding and nothing else.
        idle = name.endswith(("key/bias", "choice_bias"))
        if norms[0] < 1e-4 and norms[1] < 1e-4 and idle:
            cosine, norms = 1.0, (1.0, 1.0)
        leaves[name] = (float(cosine), float(abs(norms[1] / norms[0] - 1)))
    return {"loss": abs(found_loss / loss - 1), "leaves": leaves}


def faults(measured):
    """Returns what of `measured` is not the gradient of one device."""
    wrong = [
        name
        for name, (cosine, norm_error) in measured["leaves"].items()
        if not (cosine >= MIN_COSINE and norm_error <= MAX_NORM_ERROR)
    ]
    return wrong + ["loss"] * (not measured["loss"] <= MAX_LOSS_ERROR)


def without_psum(gradient, params, batch):
    """Returns the planted bug: each data shard keeps its own gradient; losses agree."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec

    def local(params, batch):
        grads, sums = gradient(params, batch)
        return grads, jax.lax.psum(sums, "data")

    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    wrong = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(wrong)(params, batch)


def main(style):
    import jax

    from lmx.core.schema import ParallelConfig
    from lmx.parallel.mesh import make_mesh
    from lmx.parallel.partition import Partition
    from lmx.parallel.rules import DEFAULT
    from lmx.training.step import summed_gradient

    assert len(jax.devices()) == DEVICES
    objective, boxed, params, batch = make(style)
    gradient = partial(summed_gradient, objective, pieces=STYLES[style]["pieces"])
    reference = jax.jit(gradient)(params, batch)
    measured = {}
    for shape in meshes(style):
        partition = Partition(make_mesh(ParallelConfig(*shape)), DEFAULT)
        partition.check(boxed, ROWS // STYLES[style]["pieces"])
        shardings = partition.state_shardings(params, boxed)
        step = partition.jit(gradient, out=(shardings, partition.replicated))
        placed = jax.device_put(params, shardings), partition.place_batch(batch)
        measured[str(shape)] = compare(reference, step(*placed))
    if style == "llama":
        measured["planted"] = compare(reference, without_psum(gradient, params, batch))
    print(json.dumps(measured))


@pytest.fixture(scope="module", params=STYLES)
def measured(request):
    # Twenty programs that run once: the time is that of compiling them.
    flags = (
        f"--xla_force_host_platform_device_count={DEVICES} "
        "--xla_backend_optimization_level=0"
    )
    result = subprocess.run(
        [sys.executable, __file__, request.param],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_gradients_on_every_mesh_are_those_of_one_device(measured):
    assert len(MESHES) == 10
    wrong = {mesh: faults(m) for mesh, m in measured.items() if mesh != "planted"}
    assert len(wrong) in (len(MESHES), len(MESHES[::4]), len(EXPERT_MESHES))
    assert not any(wrong.values()), wrong


def test_a_missing_sum_over_devices_is_caught(measured):
    if "planted" in measured:
        assert measured["planted"]["loss"] <= MAX_LOSS_ERROR
        assert set(faults(measured["planted"])) == set(measured["planted"]["leaves"])


def test_a_gradient_that_is_only_scaled_is_caught():
    import numpy as np

    sums = {"value": 1.0}
    good = {"a": np.arange(3.0), "b": np.ones(2)}
    twice = {**good, "b": 2 * good["b"]}
    assert faults(compare((good, sums), (good, sums))) == []
    assert faults(compare((good, sums), (twice, sums))) == ["b"]


if __name__ == "__main__":
    main(sys.argv[1])
