"""Every mistake ends with a short message and the right exit code; nothing is lost."""

import json
import os
import subprocess
import sys

import pytest

from lmx.__main__ import COMMANDS, main
from lmx.core.errors import DATA, DONE, IO_ERROR, NO_CHECKPOINT, USAGE

from .conftest import ROOT

EXPERIMENT = str(ROOT / "experiments" / "quickstart.py")


def run(capsys, *argv):
    try:
        code = main(list(argv))
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from lmx.__main__ import main\n"
        "main(['--help']); main(['version'])\n"
        "assert not {'jax', 'numpy', 'ml_collections', 'argparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == DONE
    assert "example:" in out
    assert f"lmx {command}" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train"], "--config"),
        (["train", "--config=nowhere.py"], "no such file"),
        (["train", f"--config={EXPERIMENT}", "--workdri=x"], "'--workdir'"),
        (
            ["train", f"--config={EXPERIMENT}", "--config.model.num_layer=3"],
            "did you mean 'model.num_layers'?",
        ),
        (["train", f"--config={EXPERIMENT}", "--config.steps=x"], "a whole number"),
        (["train", f"--config={EXPERIMENT}", "--config.steps"], "needs a value"),
        (["train", f"--config={EXPERIMENT}:smok"], "known: 'size=10m', 'smoke'"),
        (["config", "explain", "model.widht"], "did you mean 'model.width'?"),
        (["config", "explian"], "did you mean 'explain'?"),
        (["generate", "--prompt=x", "--workdir=nowhere"], "there is no /"),
        (["generate", "--workdir=x"], "--prompt"),
        (
            ["generate", "--workdir=x", "--prompt=x", "--temperature=-1"],
            "temperature=-1.0",
        ),
    ],
)
def test_a_mistake_is_five_lines_at_most_and_exit_code_2(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert code == USAGE
    assert message in err
    assert len((out + err).strip().splitlines()) <= 5
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "such"),
        (lambda p: p.mkdir(), "text"),
        (lambda p: p.write_bytes(b"\x00\xff\xfe\x80binary" * 500), "text"),
        (lambda p: p.write_text(""), "text"),
        (lambda p: p.write_text("too short"), ""),
    ],
)
def test_bad_text_is_a_data_error_and_leaves_no_run(tmp_path, capsys, make, message):
    make(tmp_path / "text.txt")
    workdir = tmp_path / "run"
    code, _, err = run(
        capsys,
        "train",
        f"--config={EXPERIMENT}:smoke",
        f"--workdir={workdir}",
        f"--config.data.path={tmp_path / 'text.txt'}",
    )
    assert code == DATA, err
    assert message in err
    assert len(err.strip().splitlines()) <= 5
    assert not (workdir / "config.json").exists()


def test_an_unwritable_workdir_is_a_storage_error(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(
        capsys,
        "train",
        f"--config={EXPERIMENT}:smoke",
        f"--workdir={tmp_path / 'file' / 'run'}",
    )
    assert code == IO_ERROR
    assert "--workdir" in err


def test_generate_reads_prompts_and_writes_json(finished, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def "}\n{"prompt": "import "}\n')
    argv = ["generate", f"--workdir={finished[0]}", "--max_new_tokens=5"]
    code, out, _ = run(capsys, *argv, f"--prompts={prompts}", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["prompt"] for row in rows]) == (DONE, ["def ", "import "])
    code, out, _ = run(capsys, *argv, "--prompt=def ", "--temperature=0")
    assert code == DONE
    assert out.startswith("def ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"text": "x"}\n', "must be a JSON object with a 'prompt'"),
        (b"[1]\n", "must be a JSON object with a 'prompt'"),
    ],
)
def test_bad_prompt_files_are_data_errors(tmp_path, capsys, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    code, _, err = run(capsys, "generate", "--workdir=x", f"--prompts={path}")
    assert (code, message in err) == (DATA, True), err


def test_a_workdir_whose_checkpoints_are_all_damaged_is_exit_code_5(run_copy, capsys):
    for manifest in (run_copy / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    code, _, err = run(
        capsys, "generate", f"--workdir={run_copy}", "--prompt=x", "--max_new_tokens=2"
    )
    assert code == NO_CHECKPOINT
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_is_no_error(finished):
    command = f"{sys.executable} -m lmx config show --config={EXPERIMENT} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert "Traceback" not in done.stderr
