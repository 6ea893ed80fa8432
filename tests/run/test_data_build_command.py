"""`lmx data build` from the command line: its options, and what its errors advise."""

from __future__ import annotations

import errno
import os

import pytest

from lmx.__main__ import main
from lmx.core.errors import DATA, DONE, IO_ERROR, USAGE, DataError
from lmx.curate import encoding
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer

EXPERIMENT = """
from lmx.curate.config import default_build_config


def get_config(arg=""):
    config = default_build_config()
    config.sources = {{
        "notes": {{"path": {path!r}, "licence": "CC0-1.0", "uses": ("train",)}}
    }}
    config.filters = {{"length": {{"least": 2}}, "lorem_ipsum": {{}}}}
    config.vocab_size = 300
    return config
"""


@pytest.fixture
def experiment(tmp_path):
    """The path of a build's config; its source is 20 notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(20):
        (notes / f"{number}.txt").write_text(f"note {number}: {number**3} and more\n")
    path = tmp_path / "mix.py"
    path.write_text(EXPERIMENT.format(path=str(notes)))
    return path


def run(capsys, experiment, *words):
    out = experiment.with_name("store")
    argv = ["data", "build", f"--config={experiment}", f"--out={out}", "--workers=1"]
    code = main([*argv, *words])
    return code, *capsys.readouterr()


def test_a_store_is_built_once(experiment, capsys):
    code, out, _ = run(capsys, experiment)
    assert code == DONE
    assert f"store is built; its data card is {experiment.parent}/store/card" in out
    code, _, err = run(capsys, experiment)
    assert code == USAGE
    assert "is there already; choose another --out" in err


def test_what_was_only_to_be_cleaned_up_is_done(experiment, capsys, monkeypatch):
    monkeypatch.setattr("lmx.curate.build.shutil.rmtree", lambda *_, **__: None)
    assert run(capsys, experiment)[0] == DONE
    monkeypatch.undo()
    assert list(experiment.parent.glob(".*"))
    code, out, _ = run(capsys, experiment)
    assert code == DONE
    assert "store was built already, from the same config and files" in out
    assert not list(experiment.parent.glob(".*"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "--config.filters.length=3",
            "as in --config.filters.length.SETTING=3; they are: least, most",
        ),
        ("--config.filters.lorem_ipsum=3", "they are: phrase"),
        ("--config.sources.notes=3", "as in --config.sources.notes.SETTING=3"),
        ("--config.filters.lenght.least=3", "did you mean 'filters.length'"),
        ("--config.vocab_size=200", "set vocab_size=259 or more"),
    ],
)
def test_a_wrong_value_is_told_with_what_serves(experiment, capsys, word, told):
    code, _, err = run(capsys, experiment, word)
    assert code == USAGE
    assert told in err
    assert "data." not in err


@pytest.mark.parametrize("call", ["replace", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_storage_errors_advise_another_out(
    experiment, capsys, monkeypatch, call, number
):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        code, _, err = run(capsys, experiment)
    assert code == IO_ERROR
    assert os.strerror(number) in err
    assert "choose another --out" in err
    assert "workdir" not in err
    assert run(capsys, experiment)[0] == DONE


def test_a_source_that_is_no_data_set_is_told_as_a_source(experiment, capsys):
    code, _, err = run(capsys, experiment, "--config.sources.notes.path=./nowhere.txt")
    assert code == DATA
    assert "set the source's path to a folder" in err
    assert "data.path" not in err


def test_a_published_folder_s_chat_template_is_used(tmp_path):
    folder = tmp_path / "tokenizer"
    train_tokenizer("bpe", ["some text"], 300).save(folder)
    (folder / "meta.json").unlink()
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"chat_template": "older"}')
    found = []
    for name in (folder, folder / "tokenizer.json"):
        checked = type("Config", (), {"tokenizer": str(name)})
        found.append(encoding.template_of(checked))
        assert Tokenizer.load(name).vocab_size > 256
    assert found == ["older", "older"]
    (folder / "chat_template.jinja").write_text("newer")
    assert encoding.template_of(checked) == "newer"
    (folder / "chat_template.jinja").unlink()
    settings.write_text('{"chat_template": 3}')
    with pytest.raises(DataError, match="chat_template=3 is no text"):
        encoding.template_of(checked)
