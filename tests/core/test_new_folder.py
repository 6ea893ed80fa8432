"""A folder is whole or not there, also for the process that a signal ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lmx.core import new_folder as module
from lmx.core.errors import StorageError, UserError
from lmx.core.new_folder import new_folder

# What runs in the background may have been started with these ignored.
AS_IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
# Sends itself signals at a place of its own, or in a function of the module.
STOPPED = """
import os, signal, sys, time
from lmx.core import new_folder as module

place, number, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def stop(where):
    if where == place:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the second is no reason to stop cleaning

def stopping(name):
    old = getattr(module, name)
    def new(*args):
        stop(name)
        return old(*args)
    setattr(module, name, new)

for name in ("_make", "_publish", "_remove"):
    stopping(name)
with module.new_folder(target) as new:
    staged = new.path
    (staged / "a").write_text("a")
    stop("block")
    try:
        stop("swallowed")
    except KeyboardInterrupt:
        pass  # as code in C may do
    with new.held():
        stop("held")
        (staged / "c").write_text("c")
    (staged / "b").write_text("b")
print("done")
"""
PLACES = ["_make", "block", "swallowed", "held", "_publish", "_remove"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "place", ["_make", "block", "swallowed", "_publish", "_remove"]
)
def test_a_signal_leaves_a_whole_folder_or_none_and_does_what_it_did(
    tmp_path, place, number
):
    command = AS_IN_A_TERMINAL + STOPPED
    argv = [sys.executable, "-c", command, place, str(int(number))]
    done = subprocess.run([*argv, tmp_path / "new"], capture_output=True, text=True)
    assert done.returncode == -number, done.stderr
    assert done.stdout == ""
    whole = place in ("_publish", "_remove")
    assert [p.name for p in tmp_path.iterdir()] == ["new"] * whole
    if whole:
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a", "b", "c"]


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    command = f"""
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
exec({STOPPED!r})"""
    argv = [sys.executable, "-c", command, "block", str(int(signal.SIGHUP))]
    done = subprocess.run([*argv, tmp_path / "new"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a", "b", "c"]


def test_what_fails_leaves_nothing(tmp_path):
    def fail():
        with new_folder(tmp_path / "new") as new:
            (new.path / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with new_folder(tmp_path / "new"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_there_is_kept_and_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as new:
        (new.path / "mine").write_text("x")
    for taken in ("empty", "empty/mine"):
        with (
            pytest.raises(UserError, match="is there already"),
            new_folder(tmp_path / taken),
        ):
            pass
    assert (tmp_path / "empty" / "mine").read_text() == "x"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(StorageError, match="file/new"),
        new_folder(tmp_path / "file" / "new"),
    ):
        pass

    def overtaken():
        with new_folder(tmp_path / "new"):
            (tmp_path / "new").mkdir()  # by another process, meanwhile
            (tmp_path / "new" / "theirs").write_text("x")

    with pytest.raises(StorageError, match=str(tmp_path / "new")):
        overtaken()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["theirs"]


def test_a_thread_that_still_writes_is_waited_for(tmp_path, monkeypatch):
    rmtree, turns = module.shutil.rmtree, []

    def busy(path, **options):
        turns.append(path)
        if len(turns) > 2:
            rmtree(path, **options)

    monkeypatch.setattr(module.shutil, "rmtree", busy)
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "new"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
