"""Checkpoints come back bit for bit, or not at all and with the reason."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import (
    NO_CHECKPOINT,
    CheckpointError,
)
from lmx.core.trees import flatten_with_names
from lmx.training.checkpoints import Checkpoints, state_digest
from lmx.training.manifest import MANIFEST

from .conftest import (
    abstract,
    files_of,
    make_state,
    open_in,
)

# What is restored.


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(5, ema=True)
    with open_in(tmp_path) as checkpoints:
        checkpoints.save(5, state)
        checkpoints.wait()
        assert checkpoints.latest() == 5
        found = checkpoints.restore(5, abstract(state))
        assert checkpoints.facts(5) == {"config": "abc"}
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert state_digest(found) == state_digest(state)


def test_facts_that_are_known_late_are_stored_with_later_steps(run):
    with open_in(run) as checkpoints:
        checkpoints.remember({"config": "def", "tokenizer": None})
        checkpoints.save(3, make_state(3))
    with open_in(run) as checkpoints:
        assert checkpoints.facts(2) == {"config": "abc"}
        assert checkpoints.facts(3) == {"config": "def", "tokenizer": None}


def test_another_reader_finds_it(run):
    with open_in(run) as checkpoints:
        step = checkpoints.latest()
        assert checkpoints.digest(step) == state_digest(make_state(2))
        found = checkpoints.restore(step, abstract(make_state(2)))
    assert state_digest(found) == state_digest(make_state(2))


def test_a_save_is_a_copy_although_the_next_steps_take_the_buffers(tmp_path):
    advance = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0
    )
    state = advance({"params": {"w": jnp.zeros((512, 1024))}, "step": jnp.int32(0)})
    shapes = abstract(state)
    with open_in(tmp_path) as checkpoints:
        for step in (1, 2):
            # Not a digest: a NumPy view of a buffer keeps it from being taken.
            kept = jax.tree.map(jnp.copy, state)
            checkpoints.save(step, state)
            for _ in range(5):
                state = advance(state)
            jax.block_until_ready(state)
            checkpoints.wait()
            found = checkpoints.restore(step, shapes)
            assert state_digest(found) == state_digest(kept)


def test_parameters_come_back_without_config_or_state(run):
    with open_in(run) as checkpoints:
        params = checkpoints.restore_params(2)
        with pytest.raises(CheckpointError, match="holds no 'ema'"):
            checkpoints.restore_params(2, weights="ema")
    assert state_digest(params) == state_digest(make_state(2).params)
    assert jax.tree.structure(params) == jax.tree.structure(make_state(2).params)


def test_generation_gets_the_averaged_weights_where_there_are_any(tmp_path):
    state = make_state(3, ema=True)
    with open_in(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
        assert state_digest(checkpoints.restore_params(3)) == state_digest(state.ema)
        params = checkpoints.restore_params(3, weights="params")
    assert state_digest(params) == state_digest(state.params)


RESHARD = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lmx.training.checkpoints import Checkpoints, state_digest
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
def leaf(shape, spec, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
like = {
    "params": {"w": leaf((8, 16), P("data", "tensor")), "b": leaf((8,), P(None))},
    "step": leaf((), P(), "int32"),
}
with Checkpoints(sys.argv[1]) as one:
    state = one.restore(one.latest(), like)
    assert state["params"]["w"].sharding.spec == P("data", "tensor")
    print(state_digest(state), state_digest(one.restore_params(one.latest())))
with Checkpoints(sys.argv[2]) as other:
    other.save(1, state)
"""


def test_a_state_moves_from_one_device_to_eight_and_back(tmp_path):
    state = {
        "params": {
            "w": jnp.arange(128, dtype=jnp.float32).reshape(8, 16) / 7,
            "b": jnp.ones(8),
        },
        "step": jnp.int32(1),
    }
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(1, state)
    result = subprocess.run(
        [sys.executable, "-c", RESHARD, str(tmp_path / "one"), str(tmp_path / "eight")],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [state_digest(state), state_digest(state["params"])]
    with Checkpoints(tmp_path / "eight") as checkpoints:
        found = checkpoints.restore(1, abstract(state))
        params = checkpoints.restore_params(1)
    assert state_digest(found) == state_digest(state)
    assert state_digest(params) == state_digest(state["params"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: make_state(0, width=5), r"blocks/0/kernel has shape \(4, 3\), not"),
        (lambda s: s.replace(step=jnp.float32(0)), "step is int32, not float32"),
        (lambda s: s.replace(ema=s.params), "ema/blocks/0/kernel is missing"),
        (lambda s: s.replace(opt_state=()), r"opt_state/.* has no place"),
    ],
)
def test_a_state_of_another_shape_is_refused_by_the_name_of_a_leaf(run, change, said):
    with open_in(run) as checkpoints, pytest.raises(CheckpointError, match=said) as e:
        checkpoints.restore(2, abstract(change(make_state(0))))
    assert "--workdir" in str(e.value)


# What is found.


def test_an_empty_or_absent_directory_is_a_fresh_start(tmp_path):
    with open_in(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.recover() is None
        assert not (tmp_path / "checkpoints").exists(), "reading makes nothing"
        (tmp_path / "checkpoints").mkdir()
        assert checkpoints.latest() is None


def test_each_of_thirty_bit_flips_is_named_and_the_step_before_used(run):
    step = run / "checkpoints" / "2"
    files = files_of(step)
    generator = random.Random(0)
    for _ in range(30):
        path = generator.choice([file for file in files if file.stat().st_size])
        good = path.read_bytes()
        position = generator.randrange(len(good) * 8)
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        path.write_bytes(bad)
        report: list[str] = []
        assert open_in(run, report=report).latest() == 1
        name = path.relative_to(step).as_posix()
        assert len(report) == 1
        assert report[0].startswith(f"checkpoint 2: {name}: ")
        assert report[0].endswith("; using 1")
        path.write_bytes(good)
    assert open_in(run).latest() == 2


def _shorten(run):
    path = next(iter(sorted((run / "checkpoints" / "2" / "params" / "d").iterdir())))
    path.write_bytes(path.read_bytes()[:-1])


HARMS = {
    "empty newer step": lambda run: (run / "checkpoints" / "3").mkdir(),
    "truncated file": _shorten,
    "missing manifest": lambda run: (run / "checkpoints" / "2" / MANIFEST).unlink(),
    "extra file": lambda run: (run / "checkpoints" / "2" / "junk").touch(),
    "junk directory": lambda run: (run / "checkpoints" / "2" / "d").mkdir(),
    "renamed step": lambda run: shutil.move(
        run / "checkpoints" / "2", run / "checkpoints" / "9"
    ),
}
EXPECTED = {"empty newer step": 2, "junk directory": 2}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_step_is_passed_over_and_recovered_from(run, harm):
    HARMS[harm](run)
    report: list[str] = []
    with open_in(run, report=report) as checkpoints:
        before = files_of(run)
        step = checkpoints.latest()
        assert step == EXPECTED.get(harm, 1)
        assert files_of(run) == before, "a reader moves nothing"
        assert checkpoints.recover() == step
        assert checkpoints.steps() == list(range(1, step + 1))
        state = checkpoints.restore(step, abstract(make_state()))
        assert state_digest(state) == state_digest(make_state(step))
        checkpoints.save(step + 1, make_state(step + 1))
        checkpoints.wait()
        assert checkpoints.latest() == step + 1
    moved = (run / "checkpoints" / "quarantine").exists()
    assert moved == (len(report) == 1) == (harm != "junk directory")


def test_things_that_are_not_steps_are_left_alone(run):
    for name in ("junk", "-1", "007", "1e3", "٣"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "12").write_text("a file")
    with open_in(run) as checkpoints:
        assert checkpoints.recover() == 2
    assert (run / "checkpoints" / "junk").is_dir()
    assert (run / "checkpoints" / "12").read_text() == "a file"


def test_if_no_step_verifies_each_fault_is_named_and_nothing_moved(run):
    _shorten(run)
    (run / "checkpoints" / "1" / MANIFEST).unlink()
    before = files_of(run)
    for method in ("latest", "recover"):
        with (
            open_in(run) as checkpoints,
            pytest.raises(CheckpointError) as failed,
        ):
            getattr(checkpoints, method)()
        said = str(failed.value)
        assert failed.value.exit_code == NO_CHECKPOINT
        assert re.search(r"checkpoint 2: .* bytes instead of", said)
        assert "checkpoint 1: manifest.json: missing" in said
        assert "move the directory away" in said
    assert files_of(run) == before


def test_a_damaged_or_absent_step_is_not_restored(run):
    _shorten(run)
    with open_in(run) as checkpoints:
        for step, said in ((2, "is damaged"), (7, r"there are \[1, 2\]")):
            with pytest.raises(CheckpointError, match=said):
                checkpoints.restore(step, abstract(make_state()))
            with pytest.raises(CheckpointError, match=said):
                checkpoints.restore_params(step)


# The digest.


def test_the_digest_sees_every_bit_name_shape_and_dtype():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int32)}
    others = [
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"a": np.zeros((2, 3), np.int32)},
        base | {"a": -np.zeros((2, 3), np.float32)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"]},
    ]
    digests = {state_digest(tree) for tree in [base, *others]}
    assert len(digests) == len(others) + 1
    assert state_digest({"b": base["b"], "a": jnp.asarray(base["a"])}) == state_digest(
        base
    )


def test_the_items_of_a_checkpoint_can_be_read_without_lmx(run):
    import orbax.checkpoint as ocp  # the independent reader

    reader = ocp.PyTreeCheckpointer()
    state = make_state(2)
    for item in ("params", "train"):
        saved = reader.metadata(run / "checkpoints" / "2" / item).item_metadata.tree
        names = {name for name, _ in flatten_with_names(state)}
        mine = {name for name in names if name.startswith("params/")}
        assert set(saved) == (mine if item == "params" else names - mine)
    how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in mine}
    found = reader.restore(
        run / "checkpoints" / "2" / "params", item=how, restore_args=how
    )
    assert state_digest(found) == state_digest({"params": state.params})
