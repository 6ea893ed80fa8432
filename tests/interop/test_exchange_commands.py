"""`lmx import`, `lmx export` and `lmx chat` say and make what the Python face does.

Where transformers is installed, `lmx import` takes it as a reference. What is wrong
with a published model is refused in `test_refusals.py`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

import lmx
from lmx.__main__ import main
from lmx.core.errors import DATA, DONE, NO_CHECKPOINT, USAGE, UserError
from lmx.interop.parity import has_reference

REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


def configured(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def run(capsys, *argv):
    capsys.readouterr()
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_imported_model_is_its_source(
    tmp_path, capsys, source, to, assert_same_model
):
    model = source[1]
    path = source[0] if to == "hf" else model.save(tmp_path / "out", to="gguf")
    workdir = tmp_path / "run"
    code, out, err = run(capsys, "import", path, f"--workdir={workdir}")
    assert code == DONE, err
    assert f"written: {workdir}" in out
    assert_same_model(lmx.load(workdir), model)
    proof = json.loads((workdir / "parity.json").read_text())
    assert proof["ok"] is True
    assert proof["weights"] == {
        "tensors": 3 + 9 * model.model.num_layers,
        "max_abs_difference": 0.0,
        "ok": True,
    }
    if to == "hf" and REFERENCE:
        assert proof["logits"]["ok"] is True
        assert proof["logits"]["max_abs_difference"] <= proof["logits"]["tolerance"]
        assert proof["logits"]["kl_divergence"] < 1e-6
    else:
        assert proof["logits"] is None
        assert "no logits are compared" in proof["note"]


def test_an_import_into_bfloat16_is_rounded_once(
    tmp_path, capsys, source, assert_same_params
):
    workdir = tmp_path / "run"
    code, _, err = run(
        capsys, "import", source[0], f"--workdir={workdir}", "--dtype=bfloat16"
    )
    assert code == DONE, err
    found = lmx.load(workdir)
    assert found.model.param_dtype == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), source[1].params)
    assert_same_params(found.params, rounded)
    weights = json.loads((workdir / "parity.json").read_text())["weights"]
    off = jax.tree.map(lambda x, y: np.abs(x - y).max(), rounded, source[1].params)
    assert weights["ok"] is True
    assert weights["max_abs_difference"] == max(jax.tree.leaves(off)) > 0


@pytest.mark.parametrize(
    ("to", "dtype"),
    [("hf", "bfloat16"), ("hf", "float16"), ("gguf", "bfloat16"), ("gguf", "int8")],
)
def test_every_export_has_its_proof(tmp_path, capsys, monkeypatch, source, to, dtype):
    argv = ("export", f"--workdir={source[0]}", f"--to={to}", f"--dtype={dtype}")
    code, said, err = run(capsys, *argv, tmp_path / "a")
    assert code == DONE, err
    assert "rounded by at most" in said
    proof = json.loads((tmp_path / "a" / "parity.json").read_text())
    assert proof["weights"]["ok"] is True
    assert 0 < proof["weights"]["max_abs_difference"] < 0.02
    if to == "hf" and has_reference():
        assert dtype in proof["note"]
    monkeypatch.setattr("lmx.interop.parity.ROUNDING", {dtype: (2.0**-14, 0.0)})
    code, said, err = run(capsys, *argv, tmp_path / "b")
    assert (code, "the export is wrong" in err) == (DATA, True)
    assert "are those of the source" not in said


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_imported_model_is_exported_again_as_it_was(
    tmp_path, capsys, source, to, assert_same_model
):
    workdir, out = tmp_path / "run", tmp_path / "out"
    assert run(capsys, "import", source[0], f"--workdir={workdir}")[0] == DONE
    argv = ("export", f"--workdir={workdir}", f"--to={to}", out)
    code, said, err = run(capsys, *argv)
    assert code == DONE, err
    assert "parity:" in said
    assert json.loads((out / "parity.json").read_text())["ok"] is True
    assert_same_model(lmx.load(out if to == "hf" else out / "model.gguf"), source[1])
    code, _, err = run(capsys, *argv)
    assert code == USAGE
    assert "is there already" in err
    if to == "hf":
        for name in names_of(source[0]):
            assert (out / name).read_bytes() == (source[0] / name).read_bytes(), name


def test_lmx_chat_says_what_the_python_face_says(tmp_path, capsys, source):
    model = source[1]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the fox"},
    ]
    expected = model.chat(messages, temperature=0, max_new_tokens=9)
    code, out, err = run(
        *(capsys, "chat", f"--workdir={source[0]}", "--system=be brief"),
        *("--message=the fox", "--temperature=0", "--max_new_tokens=9"),
    )
    assert code == DONE, err
    assert out == expected + "\n"


def test_a_model_with_only_a_sentencepiece_file_writes_and_chats(
    tmp_path, capsys, copied, text
):
    sentencepiece = pytest.importorskip("sentencepiece")
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").write_text("{}")
    configured(copied, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    (copied / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    with open(copied / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 3),
            model_writer=file,
            model_type="bpe",
            vocab_size=296,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=3,
        )
    model = lmx.load(copied)
    theirs = sentencepiece.SentencePieceProcessor(str(copied / "tokenizer.model"))
    assert model.tokenizer.encode(text) == theirs.encode(text)
    assert model.tokenizer.eos_ids == (2, 3)
    assert isinstance(model.generate(text, temperature=0, max_new_tokens=9), str)
    messages = [{"role": "user", "content": "the fox"}]
    reply = model.chat(messages, temperature=0, max_new_tokens=9)
    code, out, err = run(capsys, "import", copied, f"--workdir={tmp_path / 'run'}")
    assert code == DONE, out + err
    _, out, _ = run(
        *(capsys, "chat", f"--workdir={tmp_path / 'run'}"),
        *("--message=the fox", "--temperature=0", "--max_new_tokens=9"),
    )
    assert reply in out
    # What is exported holds a tokenizer.json that does the same.
    found = lmx.load(model.save(tmp_path / "out")).tokenizer
    assert found.encode(text) == theirs.encode(text)
    assert found.decode(found.encode(text)) == theirs.decode(theirs.encode(text))
    assert (found.prefix_ids, found.eos_ids) == ((1,), (2, 3))
    found = lmx.load(model.save(tmp_path / "gguf", to="gguf")).tokenizer
    assert found.encode(text) == theirs.encode(text)
    assert (found.prefix_ids, found.eos_ids) == ((1,), (2, 3))


def test_a_name_that_is_neither_here_nor_on_the_hub_says_so(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    def missing(*_, **__):
        raise OSError("404")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no {tmp_path}/runs/a, and the Hub .*404"):
        lmx.load("runs/a")


def test_a_model_without_a_chat_template_does_not_chat(tmp_path, capsys, model_of):
    folder = model_of("llama", template=None).save(tmp_path / "out")
    assert not (folder / "chat_template.jinja").exists()
    code, _, err = run(capsys, "chat", f"--workdir={folder}", "--message=hi")
    assert code == USAGE
    assert "no chat template" in err


def test_a_used_workdir_is_not_imported_into(tmp_path, capsys, source):
    workdir = tmp_path / "run"
    argv = ("import", source[0], f"--workdir={workdir}")
    assert run(capsys, *argv)[0] == DONE
    before = (workdir / "config.json").read_bytes()
    code, _, err = run(capsys, *argv)
    assert code == USAGE
    assert "holds a run already" in err
    assert (workdir / "config.json").read_bytes() == before


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", None)  # a call would be a TypeError
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for name, remedy in {
        "runs/nope": "correct the path",
        "runs/frist": "did you mean 'runs/first'",
        "nope": "correct the path",
        str(tmp_path / "a" / "b"): "correct the path",
    }.items():
        with pytest.raises(UserError, match=rf"^there is no {tmp_path}/.*{remedy}"):
            lmx.load(name)


def test_work_is_shown_on_stderr_and_only_results_on_stdout(tmp_path, capsys, source):
    workdir = tmp_path / "run"
    code, out, err = run(capsys, "import", source[0], f"--workdir={workdir}")
    assert code == DONE, err
    size = r"\d+ kB"
    assert re.search(rf"^reading {size}$", err, re.M)
    assert re.search(rf"^proving {size}$", err, re.M)
    assert re.search(rf"^writing {size}$", err, re.M)
    assert ("proving: logits" in err) == REFERENCE
    assert out.startswith("reading 0.1M parameters")
    assert "proving" not in out
    code, out, err = run(capsys, "export", f"--workdir={workdir}", tmp_path / "out")
    assert code == DONE, err
    assert re.search(rf"^loading {workdir}\nwriting {size}\nproving {size}$", err, re.M)
    assert out.startswith("written: ")
    assert "proving" not in out
    chat = ("chat", f"--workdir={workdir}", "--message=a", "--max_new_tokens=1")
    code, out, err = run(capsys, *chat, "--step=0")
    assert code == DONE, err
    assert re.search(rf"^loading {workdir}\ncompiling .*k parameters \({size}\)$", err)


def test_a_step_is_one_of_the_workdir(tmp_path, capsys, source):
    workdir = tmp_path / "run"
    assert run(capsys, "import", source[0], f"--workdir={workdir}")[0] == DONE
    chat = ("chat", "--message=a", "--max_new_tokens=1")
    code, _, err = run(capsys, *chat, f"--workdir={workdir}", "--step=7")
    assert code == NO_CHECKPOINT
    assert "checkpoint 7" in err
    code, _, err = run(capsys, *chat, f"--workdir={source[0]}", "--step=7")
    assert code == USAGE
    assert "step=7" in err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # that of C locales
def test_bytes_that_are_no_text_are_refused(
    monkeypatch, tmp_path, capsys, source, errors
):
    asked = io.TextIOWrapper(io.BytesIO(b"\xff\x00\n"), "utf8", errors)
    monkeypatch.setattr("sys.stdin", asked)
    code, out, err = run(capsys, "chat", f"--workdir={source[0]}")
    assert (code, out) == (DATA, "")
    assert "not UTF-8 text" in err
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        main(["chat", f"--workdir={source[0]}", "--message=\udcff"])
    assert ended.value.code == USAGE
    assert "--message: not UTF-8 text" in capsys.readouterr().err
