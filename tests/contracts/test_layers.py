from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_packages_import_only_from_rows_below_theirs():
    command = "from importlinter.cli import lint_imports; exit(lint_imports())"
    result = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_the_contract_would_notice(tmp_path):
    """A package that breaks the rule fails under the very same contract."""
    for name in ("core", "inputs", "models", "run"):
        (tmp_path / "lmx" / name).mkdir(parents=True)
        (tmp_path / "lmx" / name / "__init__.py").touch()
    (tmp_path / "lmx" / "__init__.py").touch()
    (tmp_path / "lmx" / "__main__.py").touch()
    (tmp_path / "lmx" / "models" / "x.py").write_text("from lmx.run import y\n")
    (tmp_path / "lmx" / "run" / "y.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    command = "from importlinter.cli import lint_imports; exit(lint_imports())"
    result = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "lmx.models is not allowed to import lmx.run" in result.stdout


def test_dependencies_are_few_and_bounded_on_both_sides():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = project["dependencies"]
    assert len(core) <= 15
    assert all((">=" in line) and (",<" in line) for line in core)


@pytest.mark.parametrize(
    ("name", "extras"),
    [("requirements.lock", ("dev",)), ("requirements-beam.lock", ("dev", "beam"))],
)
def test_a_lock_holds_every_dependency_and_no_address(name, extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / name).read_text()
    names = {line.split("==")[0] for line in lock.splitlines() if "==" in line}
    more = (project["optional-dependencies"][extra] for extra in extras)
    wanted = [*project["dependencies"], *itertools.chain(*more)]
    assert {line.split(">=")[0].lower() for line in wanted} <= names
    assert "://" not in lock
    assert "--" not in lock
