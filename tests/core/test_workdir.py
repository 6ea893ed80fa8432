"""A workdir has one owner, and its small files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from lmx.core import workdir
from lmx.core.errors import IO_ERROR, StorageError

HOLDER = """
import sys, time
from lmx.core.workdir import claim
with claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_host_and_pid(tmp_path, holder):
    expected = f"pid {holder.pid} on {socket.gethostname()} since "
    with (
        pytest.raises(StorageError, match=re.escape(expected)) as refused,
        workdir.claim(tmp_path / "run"),
    ):
        pass
    assert refused.value.exit_code == IO_ERROR
    assert "--workdir" in str(refused.value)
    owner = json.loads((tmp_path / "run" / "lock").read_text())
    assert owner["pid"] == holder.pid, "the refused run must not overwrite the name"


def test_a_killed_run_leaves_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdir.claim(tmp_path / "run") as path:
        assert json.loads((path / "lock").read_text())["pid"] == os.getpid()


def test_a_workdir_can_be_claimed_again_after_release(tmp_path):
    for _ in range(2):
        with workdir.claim(tmp_path / "a" / "b") as path:
            assert path.is_dir()


def test_a_lock_without_a_name_still_refuses(tmp_path):
    with workdir.claim(tmp_path):
        (tmp_path / "lock").write_bytes(b"")
        with (
            pytest.raises(StorageError, match="in use by another process"),
            workdir.claim(tmp_path),
        ):
            pass


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(StorageError, match="in the way or choose"),
            workdir.claim(path),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_workdir_is_a_storage_error(tmp_path, monkeypatch):
    # Not chmod: root may write everywhere, and tests may run as root.
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(workdir.Path, "mkdir", refuse)
    with (
        pytest.raises(StorageError, match="make it writable"),
        workdir.claim(tmp_path / "run"),
    ):
        pass


def test_write_atomic_replaces_the_whole_content(tmp_path):
    path = tmp_path / "a.json"
    workdir.write_atomic(path, "long content é")
    workdir.write_atomic(path, b"short")
    assert path.read_bytes() == b"short"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path, monkeypatch, call
):
    path = tmp_path / "a.json"
    workdir.write_atomic(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workdir.os, call, full)
    with pytest.raises(
        StorageError, match=r"cannot write .*a\.json: .*free some space"
    ):
        workdir.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_words_of_the_system_are_recognised_in_other_errors(tmp_path):
    error = ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device")
    assert workdir.storage_errno(error) == errno.ENOSPC
    assert workdir.storage_errno(ValueError("a bug")) is None
    said = str(workdir.storage_error(error, action="save to", path=tmp_path))
    assert str(tmp_path) in said
    assert said.endswith("free some space or choose another --workdir")
    said = str(workdir.storage_error(error, action="a", path="b", option="--out"))
    assert said.endswith("free some space or choose another --out")
