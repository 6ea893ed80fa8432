"""Reading a model takes little more memory than it has, and each shard its own part.

`benchmarks/import_memory.py` measures the whole command on gigabytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest

import lmx
from lmx.__main__ import main
from lmx.api import LanguageModel, imported_config
from lmx.core.errors import DONE
from lmx.core.model_schema import ModelConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.inputs.tokenizers import train_tokenizer
from lmx.interop import weights
from lmx.interop.hf_names import GPT2, LLAMA
from lmx.interop.names import GGUF_LLAMA
from lmx.interop.safetensors_file import Safetensors, write_safetensors
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve

SHAPE = {"width": 32, "num_layers": 8, "num_heads": 4, "mlp_dim": 64}
OTHER = {"num_kv_heads": 2, "head": "untied", "pattern": ("window", "attention")}
LEARNED = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"}
FORMS = {
    "fused": (GPT2, LEARNED),
    "linear": (LLAMA, {**OTHER, "window": 8}),
    "turned": (GGUF_LLAMA, OTHER | {"window": 8}),
}


class Kept:
    """Tensors in memory, and how many numbers of them were read."""

    def __init__(self, tensors):
        self.tensors, self.read_numbers = tensors, 0

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name, rows=slice(None)):
        value = self.tensors[name][rows]
        self.read_numbers += value.size
        return value


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = flatten_with_names(nn.meta.unbox(abstract_params(model)))
    return nest({n: rng.standard_normal(x.shape, np.float32) for n, x in shapes})


def made(form, vocab=96, **options):
    """Returns a table of names, a model, its parameters and where to read them."""
    rows, shape = FORMS[form]
    config = ModelConfig(**{**SHAPE, **shape, **options}, context_length=16)
    model = resolve(config, vocab_size=vocab)
    params = random_params(model)
    tensors = {name: make() for name, _, make in weights.published(model, rows, params)}
    return rows, model, params, Kept(tensors)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_is_what_was_published(form, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 100)
    rows, model, params, source = made(form)
    found = weights.read_params(model, rows, source, say_where="x")
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("form", FORMS)
def test_any_part_of_a_parameter_is_that_part_of_the_whole(form, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 100)
    rows, model, params, source = made(form)
    reader = weights._Reader(model, weights.pieces(model, rows), source, "x")
    rng = np.random.default_rng(1)
    for leaf, value in flatten_with_names(params):
        for _ in range(3):
            ends = [sorted(rng.integers(0, n + 1, 2)) for n in value.shape]
            index = tuple(slice(int(a), int(max(b, a + 1))) for a, b in ends)
            np.testing.assert_array_equal(
                reader.shard(leaf, value, index), value[index], err_msg=leaf
            )


def test_a_layer_that_a_shard_has_not_is_not_read():
    rows, model, params, source = made("linear")
    reader = weights._Reader(model, weights.pieces(model, rows), source, "x")
    leaf = "blocks/0/mlp/up/kernel"
    value = dict(flatten_with_names(params))[leaf]
    part = reader.shard(leaf, value, (slice(1, 2), slice(None), slice(None)))
    assert source.read_numbers == part.size == value[0].size
    source.read_numbers = 0
    reader.shard("embedding", params["embedding"], (slice(8, 16), slice(0, 4)))
    assert source.read_numbers == 8 * 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_takes_little_more_memory_than_the_model(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 1 << 14)
    rows, model, params, _ = made(
        *("linear", 4096), width=128, mlp_dim=512, param_dtype=dtype
    )
    write_safetensors(
        tmp_path,
        weights.published(model, rows, params),
        np.dtype(np.float32),
        shard_bytes=2_000_000,
    )
    source = Safetensors(tmp_path)
    size = sum(x.size for x in jax.tree.leaves(params))
    size *= np.dtype(jax.numpy.dtype(dtype)).itemsize
    del params
    tracemalloc.start()
    try:
        found = weights.read_params(model, rows, source, say_where="x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["embedding"].dtype == dtype
    assert size > 5e6
    assert peak < 1.2 * size


MESH = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import lmx
from lmx.core.trees import flatten_with_names
from lmx.interop import weights

whole = {name: lmx.load(name).params for name in sys.argv[1:]}
mesh = jax.make_mesh((8,), ("x",))
made, real = [], weights._aligned
weights._aligned = lambda shape, kind: made.append(np.prod(shape)) or real(shape, kind)
for name, params in whole.items():
    def spread(x):
        axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
        spec = PartitionSpec(*("x" if i == axis else None for i in range(x.ndim)))
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=sharding)
    like = jax.tree.map(spread, params)
    found = lmx.load(name, like=like).params
    for (n, x), (_, a), (_, y) in zip(*map(flatten_with_names, (found, like, params))):
        assert x.sharding == a.sharding and x.dtype == "bfloat16", n
        np.testing.assert_array_equal(x, np.asarray(y).astype("bfloat16"), n)
largest = max(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(found))
assert made and max(made) == largest, (max(made), largest)
print("fine")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hugging Face directory and a workdir that it was imported into."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = train_tokenizer("byte", [], 259)
    config = ModelConfig(**SHAPE, **OTHER, window=8, biases="qkv")
    model = resolve(config, vocab_size=264)
    lm = LanguageModel(imported_config(model), random_params(model), tokenizer)
    lm.save(folder / "hf")
    assert main(["import", str(folder / "hf"), f"--workdir={folder / 'run'}"]) == DONE
    return folder


def test_shards_go_straight_to_their_devices(published):
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", MESH, published / "hf", published / "run"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


# Kills itself where a function is called.
KILLED = """
import os, signal, sys
from pathlib import Path
from lmx.run.import_command import import_model
from lmx.interop import parity, weights
from lmx.training import checkpoints, step_folders
parity.has_reference = lambda: False
place, name, source, folder = sys.argv[1:]
owner, old = eval(place), getattr(eval(place), name)
def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, kill)
import_model(source, Path(folder))
"""
MOMENTS = [
    ("weights._Reader", "_parts"),
    ("checkpoints", "write_manifest"),
    ("step_folders.StepFolders", "publish"),
    ("checkpoints.Checkpoints", "close"),
]


@pytest.mark.parametrize(("place", "name"), MOMENTS)
def test_a_killed_import_leaves_no_model_and_can_be_run_again(
    published, tmp_path, monkeypatch, place, name
):
    monkeypatch.setattr("lmx.interop.parity.has_reference", lambda: False)
    workdir = tmp_path / "run"
    argv = [sys.executable, "-c", KILLED, place, name, published / "hf", workdir]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(lmx.core.errors.UserError):
        lmx.load(workdir)
    assert main(["import", str(published / "hf"), f"--workdir={workdir}"]) == DONE
    expected = lmx.load(published / "run").params
    jax.tree.map(np.testing.assert_array_equal, lmx.load(workdir).params, expected)
    staged = [p for p in (workdir / "checkpoints").iterdir() if p.name != "0"]
    assert not [p for p in staged if p.is_file() or any(p.iterdir())], staged
