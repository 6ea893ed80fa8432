"""Every command and all Python of the README runs; every link leads somewhere.

Training commands run their experiment's smoke variant, in a folder of their own.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lmx.run.train import default_workdir

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.strip().splitlines()]


def run(argv, folder):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def lmx(command, folder):
    """Runs a `bash launch/local.sh …` line without the launcher, smoke-sized."""
    words = shlex.split(command.removeprefix("bash launch/local.sh "))
    if words[0] == "train":
        spec = next(w for w in words if w.startswith("--config=")).split("=", 1)[1]
        if not any(w.startswith("--workdir") for w in words):
            words.append(f"--workdir={default_workdir(spec)}")
        smoke = spec if ":" in spec else f"{spec}:smoke"
        words = [f"--config={smoke}" if w == f"--config={spec}" else w for w in words]
    return run([sys.executable, "-m", "lmx", *words], folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder that looks like the repository, where the first command has been run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("experiments", "lmx"):
        (folder / name).symlink_to(ROOT / name)
    out = lmx(COMMANDS[0], folder)
    assert "gzip -9" in out
    return folder


def test_the_first_screen_shows_the_two_commands():
    assert COMMANDS[:2] == [
        "bash launch/local.sh train --config=experiments/quickstart.py",
        "bash launch/test.sh",
    ]
    assert len(README.partition("bash launch/test.sh")[0].splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS[2:])
def test_a_command_of_the_readme_runs(command, home):
    assert lmx(command, home).strip()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(home):
    examples = blocks("python")
    assert examples
    for block in examples:
        run([sys.executable, "-c", block], home)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/tour.md"])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:lmx|launch|experiments|benchmarks)/[\w/]+\.\w+)`", text)
    for name in links:
        assert (ROOT / page).parent.joinpath(name).exists(), name
    for name in named:
        assert (ROOT / name).exists(), name
