"""`lmx eval` from files to tables: kept, compared, refused by name before any work."""

from __future__ import annotations

import json
import shutil

import pytest

import lmx
from lmx.__main__ import main
from lmx.core.errors import DATA, DONE, USAGE
from lmx.tasks import TASKS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"question": f"is {i} even", "passage": f"{i}", "answer": i % 2 == 0}
        for i in range(24)
    ]
    stories = [
        {"passage": f"Al has {i} cats.", "question": "How many?", "answer": f"{i} cats"}
        for i in range(8)
    ]
    texts = [
        {"text": f"Text {i} of some length.", "lang": "ab"[i % 2]} for i in range(6)
    ]
    for name, records in (
        ("boolq_dev", rows[:16]),
        ("boolq_train", rows[16:]),
        ("asdiv", stories),
        ("human_rights_500_languages", texts),
    ):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    shutil.copytree(finished[0], folder)
    return folder


def test_tasks_are_measured_kept_and_compared(workdir, data, tmp_path, capsys):
    names = "boolq,asdiv,human_rights"
    command = ["eval", f"--workdir={workdir}", f"--tasks={names}", f"--data={data}"]
    assert main(command) == DONE
    told = capsys.readouterr().out
    assert "majority 0.5" in told
    for name in names.split(","):
        result = json.loads((workdir / "eval" / name / "results.json").read_text())
        metric = TASKS[name].metrics[0].name
        found = result["metrics"][metric]
        assert found["low"] <= found["value"] <= found["high"]
        assert result["task_digest"] == TASKS[name].digest
        assert result["versions"]["lmx"] == lmx.__version__
        lines = (workdir / "eval" / name / "samples.jsonl").read_text().splitlines()
        assert len(lines) == result["items"]
    assert result["groups"].keys() == {"a", "b"}
    assert main(command) == DONE
    assert capsys.readouterr().out.count(": kept, from") == 3
    other = tmp_path / "other"
    command[2] = "--tasks=boolq"
    assert main([*command, f"--out={other}", "--dtype=bfloat16"]) == DONE
    capsys.readouterr()
    compare = ["eval", "--compare", str(workdir), str(other), f"--out={tmp_path}"]
    assert main(compare) == DONE
    assert "McNemar" in (told := capsys.readouterr().out) or "no item differs" in told
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert {row["metric"] for row in rows} == {"accuracy", "macro_f1"}
    assert main([*command, "--limit=4"]) == DONE
    assert "kept" not in capsys.readouterr().out
    assert main(compare) == USAGE
    assert "scored on other items (4 and 16)" in capsys.readouterr().err


def test_python_measures_as_the_command_does(workdir, data):
    result = lmx.load(workdir).evaluate("boolq", str(data), limit=8, shots=2)["boolq"]
    assert result.summary["items"] == len(result.samples) == 8
    assert set(result.samples[0]["scores"]) == {"accuracy", "macro_f1"}


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--tasks=bolq"], USAGE, "did you mean 'boolq'"),
        (["--tasks=handbook_en_de_de"], USAGE, "has no file handbook_en_de-DE"),
        (["--tasks=boolq", "--data=boolq=/nowhere"], DATA, "no such file"),
        (["--tasks=boolq", "--limit=0"], USAGE, "--limit=0 must be at least 1"),
        (["--tasks=boolq", "--shots=999"], USAGE, "has 8 items to show"),
        (["--tasks=asdiv", "--chat"], USAGE, "has no chat template"),
        (["--tasks=boolq", "--data=bolq=x"], USAGE, "did you mean 'boolq'"),
        (["--tasks=boolq", "--data=asdiv=a", "--data=asdiv=b"], USAGE, "twice"),
        (["--tasks=asdiv", "--samples=3"], USAGE, "scores one answer"),
        ([], USAGE, "needs --workdir"),
    ],
)
def test_mistakes_are_named_with_their_code(
    workdir, data, capsys, arguments, code, told
):
    arguments = [*arguments, f"--data={data}"]
    assert main(["eval", f"--workdir={workdir}", *arguments]) == code
    assert told in capsys.readouterr().err


def test_what_a_task_teaches_is_written_without_what_it_scores(data, tmp_path, capsys):
    out = tmp_path / "records.jsonl"
    assert main(["data", "task", "boolq", f"--data={data}", f"--out={out}"]) == DONE
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8
    assert all(row["completion"] in (" yes", " no") for row in rows)
    assert all(row["prompt"].endswith("?\nAnswer:") for row in rows)
    assert "prompt_completion" in capsys.readouterr().out
