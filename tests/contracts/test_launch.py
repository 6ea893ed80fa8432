"""The launchers, tried with stand-ins for Python and uv: nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("bash"), reason="needs bash"
)

# Answers the launcher's probe with its version, and -m lmx with its arguments.
PYTHON = """#!/bin/sh
case "$1" in
  -ISc) echo {version} ;;
  *) echo "pid $$ args $*" ;;
esac
"""
# Notes what it was asked for; makes a virtual environment when asked to.
UV = """#!/bin/sh
echo "$*" >> "{log}"
case "$1" in
  venv)
    for last; do :; done
    mkdir -p "$last/bin"
    touch "$last/pyvenv.cfg"
    cp "$(dirname "$0")/python3.12" "$last/bin/python" ;;
  pip)
    if [ -n "$FAIL" ]; then echo "no route to the index" >&2; exit 1; fi ;;
esac
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Machine:
    """A copy of the launchers, in a path with a space, and an otherwise bare PATH."""

    def __init__(self, folder):
        self.root, self.bin = folder / "a copy", folder / "bin"
        self.log = folder / "uv.log"
        self.venv = self.root / ".venv"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("pyproject.toml", "requirements.lock", "requirements-beam.lock"):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        tools = """bash cat cksum cp cut dirname env find flock getconf grep head ls
            mkdir paste rm sed sort touch tr"""
        for tool in tools.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        executable(self.bin / "uv", UV.format(log=self.log))
        self.home = folder / "home"
        self.home.mkdir()

    def python(self, version, path=None):
        path = path or self.bin / f"python{version}"
        executable(path, PYTHON.format(version=version))
        return str(path)

    def run(self, *command, cwd=None, **variables):
        env = {"PATH": str(self.bin), "HOME": str(self.home), **variables}
        return subprocess.run(
            ["bash", *map(str, command)],
            cwd=cwd or self.root,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def find(self, **variables):
        script = f'set -euo pipefail; . "{self.root}/launch/environment.sh"'
        return self.run("-c", f"{script}; lmx_find_python", **variables)

    def train(self, **variables):
        return self.run("launch/local.sh", "train", **variables)

    def installs(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith("pip install")]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_shows_an_example_and_installs_nothing(machine, arguments):
    result = machine.run("launch/local.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert "bash launch/local.sh train --config=experiments/" in result.stdout
    assert not machine.venv.exists()


def test_dry_run_prints_a_command_that_a_shell_takes(machine):
    result = machine.run(
        "launch/local.sh", "--dry-run", "generate", "--prompt=def 'f", "--workdir=a b"
    )
    assert result.returncode == 0, result.stderr
    assert not machine.venv.exists()
    machine.python("3.12", machine.venv / "bin" / "python")
    again = machine.run("-c", result.stdout)
    assert again.stdout.endswith("-m lmx generate --prompt=def 'f --workdir=a b\n")


def test_a_switch_that_the_user_has_set_stays(machine):
    options = {"TF_CPP_MIN_LOG_LEVEL": "0", "GLIBC_TUNABLES": ""}
    result = machine.run("launch/local.sh", "--dry-run", "train", **options)
    assert "JAX_COMPILATION_CACHE_DIR=" in result.stdout
    assert "TF_CPP_MIN_LOG_LEVEL" not in result.stdout
    assert "GLIBC_TUNABLES" not in result.stdout
    added = machine.run("launch/local.sh", "--dry-run", "train", XLA_FLAGS="--own=1")
    assert r"XLA_FLAGS=--own=1\ --xla_cpu_prefer_vector_width=512 " in added.stdout
    kept = "--xla_cpu_prefer_vector_width=256"
    result = machine.run("launch/local.sh", "--dry-run", "train", XLA_FLAGS=kept)
    assert "XLA_FLAGS" not in result.stdout


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_an_experiment_is_found_from_any_folder(machine, tmp_path, form):
    (machine.root / "experiments").mkdir()
    (machine.root / "experiments" / "x.py").touch()
    (tmp_path / "own.py").touch()

    def dry_run(config):
        arguments = form.format(config).split()
        script = machine.root / "launch" / "local.sh"
        command = [script, "--dry-run", "train", *arguments]
        return (
            machine.run(*command, cwd=tmp_path).stdout.replace("\\", "").split("lmx ")
        )

    assert (
        f"{machine.root}/experiments/x.py:smoke" in dry_run("experiments/x.py:smoke")[1]
    )
    assert dry_run("own.py")[1].split() == ["train", *form.format("own.py").split()]
    assert dry_run("no.py")[1].split() == ["train", *form.format("no.py").split()]


def test_the_newest_python_that_works_is_chosen(machine):
    for version in ("3.9", "3.11", "3.12"):
        machine.python(version)
    # As pyenv's shim of a version that is switched off.
    executable(machine.bin / "python3.13", "#!/bin/sh\necho no >&2; exit 127\n")
    assert machine.find().stdout == f"{machine.bin}/python3.12\n"


def test_pythons_of_pyenv_and_uv_are_found_off_the_path(machine):
    uv = machine.home / ".local/share/uv/python/cpython-3.12.4-linux/bin/python3.12"
    pyenv = machine.home / ".pyenv/versions/3.13.0/bin/python3.13"
    assert machine.find(LMX_PYTHON=machine.python("3.12", uv)).stdout == f"{uv}\n"
    assert machine.find().stdout == f"{uv}\n"
    machine.python("3.13", pyenv)
    assert machine.find().stdout == f"{pyenv}\n"


def test_a_plain_python3_will_do(machine):
    machine.python("3.11", machine.bin / "python3")
    assert machine.find().stdout == f"{machine.bin}/python3\n"


def test_lmx_python_overrides_the_choice(machine):
    for version in ("3.9", "3.11", "3.12"):
        machine.python(version)
    assert machine.find(LMX_PYTHON="3.11").stdout == f"{machine.bin}/python3.11\n"
    assert machine.find(LMX_PYTHON="python3.11").stdout == f"{machine.bin}/python3.11\n"
    for wrong in ("3.9", "python3.9", "nowhere"):
        result = machine.find(LMX_PYTHON=wrong)
        assert result.returncode == 2
        assert f"LMX_PYTHON={wrong} is not" in result.stderr


def test_no_python_is_an_error_with_the_remedy(machine):
    machine.python("3.9", machine.bin / "python3")
    result = machine.train()
    assert result.returncode == 2
    assert "apt install python3" in result.stderr
    assert not machine.venv.exists()


def test_packages_are_installed_once_and_again_when_the_lock_changes(machine):
    machine.python("3.12")
    for _ in range(2):
        result = machine.train()
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("-m lmx train\n")
    assert len(machine.installs()) == 1
    assert "--constraint requirements.lock" in machine.installs()[0]
    with open(machine.root / "requirements.lock", "a") as lock:
        lock.write("# newer\n")
    machine.train()
    assert len(machine.installs()) == 2


def test_extras_are_added_when_asked_for_and_stay(machine):
    machine.python("3.12")
    for extras in ("", "dev", "bench", "dev", ""):
        machine.train(LMX_EXTRAS=extras)
    targets = [line.split()[-1] for line in machine.installs()]
    assert targets == [".", ".[dev]", ".[bench,dev]"]


def test_apache_beam_has_a_lock_of_its_own(machine):
    machine.python("3.12")
    machine.train(LMX_EXTRAS="dev,beam")
    assert "--constraint requirements-beam.lock" in machine.installs()[0]


def test_the_venv_of_another_checkout_is_brought_up_to_date(machine, tmp_path):
    machine.python("3.12")
    machine.train()
    machine.root = machine.root.rename(tmp_path / "moved")
    machine.train()
    assert len(machine.installs()) == 2


def test_an_interrupted_installation_is_started_afresh(machine):
    machine.python("3.12")
    assert machine.train(FAIL="1", LMX_INSTALLER="uv").returncode == 74
    (machine.venv / "half-unpacked").touch()
    result = machine.train()
    assert result.returncode == 0
    assert "did not finish" in result.stderr
    assert not (machine.venv / "half-unpacked").exists()


def test_what_the_installer_said_is_shown_when_it_fails(machine):
    machine.python("3.12")
    result = machine.train(FAIL="1", LMX_INSTALLER="uv")
    assert "no route to the index" in result.stderr
    assert "lmx train" not in result.stdout


def test_a_venv_whose_python_is_gone_is_rebuilt(machine):
    machine.python("3.12")
    machine.train()
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to("/nowhere/python3.12")
    result = machine.train()
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("-m lmx train\n")


def test_a_venv_is_rebuilt_only_for_a_python_that_was_asked_for(machine):
    machine.python("3.12")
    machine.train()
    machine.python("3.13")
    (machine.venv / "kept").touch()
    machine.train()
    assert (machine.venv / "kept").exists()
    machine.train(LMX_PYTHON="3.13")
    assert not (machine.venv / "kept").exists()


def test_a_folder_that_is_no_venv_is_left_alone(machine, tmp_path):
    machine.python("3.12")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    result = machine.train(LMX_VENV=str(precious))
    assert result.returncode == 2
    assert "is not a virtual environment" in result.stderr
    assert os.listdir(precious) == ["thesis.txt"]


def test_signals_reach_python_because_the_launcher_becomes_it(machine):
    machine.python("3.12")
    machine.train()
    process = subprocess.Popen(
        ["bash", machine.root / "launch" / "local.sh", "train"],
        env={"PATH": str(machine.bin), "HOME": str(machine.home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert output.startswith(f"pid {process.pid} args")


def test_pip_takes_over_where_uv_cannot_reach_its_index(machine):
    machine.python("3.12")
    result = machine.train(FAIL="1")
    assert result.returncode == 0, result.stderr
    assert "uv failed: no route to the index; trying pip" in result.stderr
    assert "-m pip install" in (machine.venv / "install.log").read_text()
    assert result.stdout.endswith("-m lmx train\n")
