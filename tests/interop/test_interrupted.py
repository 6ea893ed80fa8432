"""An import or an export that is interrupted leaves a whole model or nothing.

Real processes send signals to themselves, in the midst of reading, proving, saving and
publishing; one is stopped from outside.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lmx
from lmx.core.errors import DONE, INTERRUPTED

# Runs a command again and again, with a signal in another function each time, and
# prints the code or the signal that each ended with.
MANY = """
import json, os, signal, sys
from pathlib import Path
from lmx.__main__ import main
from lmx.core import config as configs, new_folder
from lmx.inputs import tokenizers
from lmx.interop import gguf_writer, parity, safetensors_file, weights
from lmx.training import checkpoints, step_folders

parity.has_reference = lambda: False

class Terminated(BaseException):
    pass

def terminated(*_):
    raise Terminated

signal.signal(signal.SIGTERM, terminated)
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
target, moments, argv = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
for i, (owner, name) in enumerate(moments):
    for number in (signal.SIGINT, signal.SIGTERM):
        module = eval(owner)
        old = getattr(module, name)
        def stop(*args, **named):
            os.kill(os.getpid(), number)
            return old(*args, **named)
        setattr(module, name, stop)
        folder = str(target / f"{i}-{int(number)}")
        try:
            ended = main([word.replace("TARGET", folder) for word in argv])
        except Terminated:
            ended = "terminated"
        setattr(module, name, old)
        print("ended", ended)
"""
IMPORT = [
    ("weights._Reader", "_parts"),
    ("parity", "weight_parity"),
    ("tokenizers.Tokenizer", "save"),
    ("checkpoints.Checkpoints", "save"),
    ("checkpoints", "write_manifest"),
    ("step_folders.StepFolders", "publish"),
    ("checkpoints.Checkpoints", "close"),
    ("configs", "to_json"),
    ("new_folder", "_publish"),
]
HF = [
    ("weights", "to_theirs"),
    ("safetensors_file", "_write_shard"),
    ("parity", "weight_parity"),
    ("new_folder", "_remove"),
]
GGUF = [("gguf_writer", "_write_tensor"), ("parity", "weight_parity")]


def interrupted(source, folder, moments, *argv):
    """Returns what is left in `folder`, which no moment but the last may fill."""
    words = [sys.executable, "-c", MANY, folder, json.dumps(moments), *argv]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = [line[6:] for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ended == [str(INTERRUPTED), "terminated"] * len(moments), done.stderr
    return sorted(folder.iterdir())


def test_an_interrupted_import_leaves_a_whole_model_or_nothing(source, tmp_path):
    argv = ("import", source[0], "--workdir=TARGET")
    left = interrupted(source, tmp_path, IMPORT, *argv)
    # While it gets its name the signal waits: the model is whole.
    assert [p.name[:2] for p in left] == [f"{len(IMPORT) - 1}-"] * 2
    for folder in left:
        assert (folder / "parity.json").exists()
        lmx.load(folder)


@pytest.mark.parametrize(("to", "moments"), [("hf", HF), ("gguf", GGUF)])
def test_an_interrupted_export_leaves_nothing(source, tmp_path, to, moments):
    argv = ("export", f"--workdir={source[0]}", f"--to={to}", "TARGET")
    assert interrupted(source, tmp_path, moments, *argv) == []


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "reading"), (signal.SIGTERM, "proving")]
)
def test_a_process_that_is_stopped_from_outside_leaves_nothing_partial(
    source, tmp_path, number, word
):
    argv = [sys.executable, "-m", "lmx", "import", source[0]]
    process = subprocess.Popen(
        [*argv, f"--workdir={tmp_path / 'run'}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        for line in process.stderr:
            if line.startswith(word):
                process.send_signal(number)
    # It may have been done before the signal came.
    if process.returncode == DONE:
        lmx.load(tmp_path / "run")
    else:
        assert process.returncode in (INTERRUPTED, -number)
    whole = (tmp_path / "run" / "config.json").exists()
    assert [path.name for path in Path(tmp_path).iterdir()] == ["run"] * whole
