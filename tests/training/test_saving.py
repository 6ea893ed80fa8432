"""What is saved, kept and pruned, and what goes wrong meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import (
    IO_ERROR,
    StorageError,
    UserError,
)
from lmx.training.checkpoints import Checkpoints, state_digest
from lmx.training.manifest import verify

from .conftest import (
    abstract,
    files_of,
    make_state,
    open_in,
    save_steps,
)

# What is kept.


def test_pruning_keeps_the_last_and_the_multiples(tmp_path):
    save_steps(tmp_path, 2, 3, 4, 5, 6, 7, keep_last=2, keep_every_steps=4)
    assert open_in(tmp_path).steps() == [4, 6, 7]
    assert not files_of(tmp_path / "checkpoints" / "saving")


def test_the_last_good_step_is_kept_while_the_next_is_being_saved(
    tmp_path, monkeypatch
):
    from lmx.training import checkpoints as module

    save_steps(tmp_path, 1, keep_last=1)
    seen = []

    def look(directory, **how):
        seen.append(open_in(tmp_path).latest())
        return module_write(directory, **how)

    module_write = module.write_manifest
    monkeypatch.setattr(module, "write_manifest", look)
    save_steps(tmp_path, 2, keep_last=1)
    assert seen == [1]
    assert open_in(tmp_path).steps() == [2]


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every_steps": 0}])
def test_keeping_nothing_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="at least 1"):
        open_in(tmp_path, **wrong)


def test_a_restored_step_is_not_saved_again_but_later_ones_replace_old_ones(run):
    report: list[str] = []
    with open_in(run, report=report) as checkpoints:
        checkpoints.restore(1, abstract(make_state()))
        checkpoints.save(1, make_state(99))
        checkpoints.save(2, make_state(98))
        checkpoints.wait()
        assert state_digest(checkpoints.restore_params(1)) == state_digest(
            make_state(1).params
        )
        assert state_digest(checkpoints.restore_params(2)) == state_digest(
            make_state(98).params
        )
    assert report == ["checkpoint 2: left by an earlier run; moved aside"]
    assert verify(run / "checkpoints" / "quarantine" / "2").step == 2


def test_the_age_is_that_of_the_newest_state_on_the_disk(tmp_path, monkeypatch):
    from lmx.training import checkpoints as module

    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with open_in(tmp_path) as checkpoints:
        now[0] = 107.0
        assert checkpoints.age_seconds() is None, "nothing is saved yet"
        checkpoints.save(1, make_state(1))
        now[0] = 110.0
        checkpoints.wait()
        assert checkpoints.age_seconds() == 3, "since it was taken, not written"


# What goes wrong while saving.

SAVER = """
import sys
import jax.numpy as jnp
from lmx.training.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    first = (checkpoints.recover() or 0) + 1
    for step in range(first, 10_000):
        checkpoints.save(step, {"params": {"w": jnp.full((256, 1024), step)}})
        if step == first:
            checkpoints.wait()
            print("ready", flush=True)
"""


def test_a_kill_during_a_save_leaves_the_steps_before_it_verifying(tmp_path):
    generator = random.Random(1)
    newest = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(generator.random() / 4)
            process.send_signal(signal.SIGKILL)
            process.wait()
        report: list[str] = []
        checkpoints = Checkpoints(tmp_path, report=report.append)
        step = checkpoints.latest() or 0
        assert step > newest
        assert report == [], "a kill leaves no damaged step behind"
        newest = step
    with checkpoints:
        assert float(checkpoints.restore_params(newest)["w"].min()) == newest


LIMITED = """
import resource, sys
import jax.numpy as jnp
from lmx.core.errors import StorageError
from lmx.training.checkpoints import Checkpoints
state = {"params": {"w": jnp.arange(300_000.0)}}  # does not compress to nothing
with Checkpoints(sys.argv[1], report=print) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(2, {"params": {"w": state["params"]["w"][::-1] * 1.1}})
    while True:
        checkpoints.check()
"""


def test_a_save_that_the_system_refuses_is_raised_by_the_next_check(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert "StorageError" in last, result.stderr
    assert f"cannot save checkpoint 2 to {tmp_path / 'c'}: File too large" in last
    assert "--workdir" in last
    assert "absl" not in result.stderr
    report: list[str] = []
    with Checkpoints(tmp_path / "c", report=report.append) as checkpoints:
        assert checkpoints.latest() == 1
        assert checkpoints.restore_params(1)["w"].shape == (300_000,)
    assert report == []
    assert not files_of(tmp_path / "c" / "saving")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where the system allows to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_noticed_and_costs_no_checkpoint(small_disk):
    rng = np.random.default_rng(0)

    def noise(size):
        return {"params": {"w": jnp.asarray(rng.normal(size=size), jnp.float32)}}

    with Checkpoints(small_disk) as checkpoints:
        checkpoints.save(1, noise(200_000))
        checkpoints.save(2, noise(2_000_000))
        with pytest.raises(StorageError, match=r"checkpoint 2 to .*free some") as e:
            checkpoints.wait()
        assert e.value.exit_code == IO_ERROR
        assert str(small_disk) in str(e.value)
        checkpoints.check()  # raised once
        assert checkpoints.latest() == 1
        checkpoints.save(3, noise(100_000))  # the space of the failed one is free
        checkpoints.wait()
        assert checkpoints.latest() == 3


def test_a_failed_save_is_not_lost_at_the_end(tmp_path, monkeypatch):
    from lmx.training import checkpoints as module

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(StorageError, match="free some space"):
        save_steps(tmp_path, 1)
    report: list[str] = []
    with contextlib.suppress(KeyError), open_in(tmp_path, report=report) as checkpoints:
        checkpoints.save(1, make_state(1))
        raise KeyError
    assert len(report) == 1
    assert "the last checkpoint was not saved: cannot save checkpoint 1" in report[0]
    assert open_in(tmp_path).latest() is None


def test_a_bug_in_the_background_is_not_dressed_as_a_storage_error(
    tmp_path, monkeypatch
):
    from lmx.training import checkpoints as module

    monkeypatch.setattr(module, "write_manifest", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_steps(tmp_path, 1)


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    for use in (
        lambda c: c.latest(),
        lambda c: c.recover(),
        lambda c: c.save(1, make_state(1)),
    ):
        with open_in(tmp_path) as checkpoints, pytest.raises(StorageError, match="way"):
            use(checkpoints)
    assert (tmp_path / "checkpoints").read_text() == "mine"
