"""`lmx data` shows exactly what training reads, and who has read it."""

from __future__ import annotations

import io
import json
import shutil

import fsspec
import numpy as np
import pytest
from rich.console import Console

from lmx.__main__ import main
from lmx.core.config import flatten, freeze
from lmx.core.errors import DONE, USAGE
from lmx.data import mirror
from lmx.data.built import Content, create, open_built, write_part
from lmx.data.rows import Rows
from lmx.inputs.tokenizers import train_tokenizer
from lmx.run.build import build
from lmx.run.data_command import ACTIONS
from lmx.run.row_text import row_text, spans, visible
from lmx.run.train import train
from lmx.training.checkpoints import Checkpoints

from .conftest import ROOT, mixed_config


def run(capsys, *argv):
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def terminal(**options) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True, **options
    )


@pytest.fixture
def experiment(built, tmp_path):
    """The path of an experiment file with the options of the mixed run."""
    options = flatten(freeze(mixed_config(built)))
    lines = [f"    config.{key} = {value!r}" for key, value in options.items()]
    head = (
        "import lmx\n\n\ndef get_config(arg=''):\n    config = lmx.default_config()\n"
    )
    path = tmp_path / "mixed.py"
    path.write_text(head + "\n".join(lines) + "\n    return lmx.variant(config, arg)\n")
    return path


@pytest.mark.parametrize("packing", ["concat", "document", "best_fit"])
def test_a_row_is_shown_as_its_first_token_and_all_that_it_predicts(built, packing):
    store = open_built(built)
    source = store.sources[0]
    rows = Rows({"data": source.train}, context_length=40, packing=packing)
    for row in range(0, len(rows), 5):
        batch = rows.batch(np.array([row]))
        found = list(spans(batch, 0, tokenizer=store.tokenizer))
        shown = [index for span in found if span.document for index in span.ids]
        real = int(np.count_nonzero(batch.segment_ids))
        if packing == "best_fit":  # the first token of each document is context
            assert len(shown) == real + batch.segment_ids.max()
        else:
            assert shown == [batch.tokens[0, 0], *batch.targets[0, :real]]
        padding = [len(span.ids) for span in found if not span.document]
        assert sum(padding) == 40 - real
        supervised = sum(len(span.ids) for span in found if span.supervised)
        assert supervised == batch.loss_weights.sum()
        held = rows.documents(row)
        kept = [source.train.document(number).tolist() for number in held]
        parts = [
            [i for span in found if span.document == document for i in span.ids]
            for document in sorted({span.document for span in found} - {0})
        ]
        assert len(parts) == len(kept)
        for part, whole in zip(parts, kept, strict=True):
            assert str(part)[1:-1] in str(whole)


def test_show_prints_a_row_of_a_store_with_its_document(built, capsys):
    code, out, _ = run(capsys, "data", "show", built, "--row=1", "--source=inputs")
    assert code == DONE
    store = open_built(built)
    stores = {"inputs": store.sources[1].train}
    batch = Rows(stores, context_length=256, packing="concat").batch(np.array([1]))
    text = store.tokenizer.decode(batch.targets[0])
    assert text in out.replace("⟦", "").replace("⟧", "")
    assert store.names("train", "inputs")[0] in out
    assert "inputs (licence of inputs): 256 of 256 tokens supervised" in out
    assert "\x1b" not in out


def test_show_prints_the_batch_of_a_step(built, experiment, capsys):
    code, out, _ = run(capsys, "data", "show", f"--config={experiment}", "--step=7")
    assert code == DONE
    corpus = build(freeze(mixed_config(built)), report=str).corpus
    batch = corpus.train_batches().at(6)
    total, supervised = batch.tokens.size, int(batch.loss_weights.sum())
    assert f"step 7 of 8: {supervised} of {total} tokens supervised" in out
    assert out.count(" of inputs (licence of inputs)") == 4
    blank = str.maketrans("", "", "⟦⟧")
    for row in range(4):
        body = batch.targets[row][batch.loss_weights[row] > 0][:20]
        assert corpus.tokenizer.decode(body) in out.translate(blank)


def test_a_step_whose_rows_are_cut_is_shown_cut(built, experiment, capsys):
    entries = "--config.data.row_lengths=12,50%: 48"
    code, out, _ = run(
        capsys, "data", "show", f"--config={experiment}", "--step=4", entries
    )
    assert code == DONE
    assert out.count("piece 1/4 (licence of") == out.count("piece 4/4 (licence of") == 4
    config = mixed_config(built)
    config.data.row_lengths = ("12", "50%: 48")
    corpus = build(freeze(config), report=str).corpus
    batch = corpus.train_batches().at(3)
    assert batch.tokens.shape == (16, 12)
    blank = str.maketrans("", "", "⟦⟧")
    for place in range(16):
        body = batch.targets[place][batch.loss_weights[place] > 0][:6]
        assert corpus.tokenizer.decode(body) in out.translate(blank)


def test_an_unbuilt_corpus_can_be_shown_too(experiment, capsys):
    code, out, _ = run(
        *(capsys, "data", "show", f"--config={experiment}:smoke"),
        *(
            f"--config.data.path={ROOT}/lmx/core",
            "--config.data.mixture=()",
            "--step=1",
        ),
    )
    assert code == DONE
    assert "(not stated)" in out


def test_documents_alternate_in_colour_and_what_has_no_loss_is_dim(built):
    store = open_built(built)
    rows = Rows({"data": store.sources[0].train}, context_length=9999, packing="concat")
    batch = rows.batch(np.array([0]))
    text = row_text(terminal(), batch, 0, tokenizer=store.tokenizer)
    styles = [str(span.style) for span in text.spans]
    assert styles[0] == "cyan dim reverse"  # the BOS that begins the row
    assert styles[1:5] == ["cyan", "cyan reverse", "yellow dim reverse", "yellow"]


def test_a_corpus_commands_no_terminal(tmp_path):
    evil = "a\x1b]0;title\x07b\x9bc\u202ed\x7f\r\n"
    tokenizer = train_tokenizer("byte", [], 259)
    documents = [(f"{evil}.txt", evil)]
    part = write_part(tmp_path / "part", tokenizer, train=documents, validation=[])
    sources = {"one": Content("x", ("train",), [part])}
    create(
        tmp_path / "s", tokenizer, sources=sources, config={}, card=lambda c: ({}, "")
    )
    rows = Rows(
        {"one": open_built(tmp_path / "s").sources[0].train},
        context_length=99,
        packing="document",
    )
    console = terminal(color_system=None)
    batch = rows.batch(np.array([0]))
    text = row_text(console, batch, 0, tokenizer=tokenizer).plain
    assert not set(text) & set("\x1b\x07\x9b\u202e\x7f\r")
    assert "a␛]0;title␇b" in text
    assert visible(evil).count("\n") == 1


def test_trace_prints_what_each_checkpoint_saw(mixed_run, built, tmp_path, capsys):
    workdir = mixed_run[0]
    other = tmp_path / "other"
    (other / "checkpoints" / "5").mkdir(parents=True)
    code, out, _ = run(
        *(capsys, "data", "trace", built, "--source=inputs"),
        *(f"--workdir={workdir}", f"--workdir={other}", "--workdir=nowhere"),
    )
    assert code == DONE
    assert "licence of inputs" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(str(workdir))]
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for (_, step, tokens, epochs, share), saved in zip(rows, (6, 8), strict=True):
            seen = checkpoints.facts(saved)["seen"]
            expected = seen["sources"]["inputs"]["tokens"]
            assert (int(step), int(tokens.replace(",", ""))) == (saved, expected)
            assert share == f"{expected / seen['tokens']:.1%}"
            size = open_built(built).sources[1].train.num_targets
            assert epochs == f"{expected / size:.2f}"
    assert f"{other}/checkpoints/5: manifest.json: " in out


def test_trace_knows_a_lone_source_under_another_name(
    mixed_run, built, tmp_path, capsys
):
    # The digest of a lone source is that of its tokens, whatever its name.
    tokenizer = open_built(built).tokenizer
    for name in ("first", "second"):
        part = write_part(
            tmp_path / f"{name}_part",
            tokenizer,
            train=[("a", "some text " * 50)],
            validation=[("b", "other text")],
        )
        create(
            tmp_path / name,
            tokenizer,
            sources={name: Content("x", (), [part])},
            config={},
            card=lambda counts: ({}, ""),
        )
    config = mixed_config(tmp_path / "first")
    config.data.mixture = ()
    config.steps = 1
    workdir = tmp_path / "run"
    train(freeze(config), workdir, say=str)
    code, out, _ = run(
        *(capsys, "data", "trace", tmp_path / "second", "--source=second"),
        f"--workdir={workdir}",
    )
    assert code == DONE
    assert f"{workdir}/checkpoints/1: saw 'second' as 'first'" in out
    (line,) = [line for line in out.splitlines() if line.startswith(f"{workdir} ")]
    assert line.split()[-1] == "100.0%"


def test_a_source_without_rows_is_named(built, tmp_path, capsys):
    tokenizer = open_built(built).tokenizer
    part = write_part(
        tmp_path / "part", tokenizer, train=[("a", "text")], validation=[]
    )
    create(
        tmp_path / "store",
        tokenizer,
        sources={"lone": Content("x", (), [part])},
        config={},
        card=lambda counts: ({}, ""),
    )
    code, _, err = run(
        *(capsys, "data", "show", tmp_path / "store", "--source=lone"),
        "--split=validation",
    )
    assert code == USAGE
    assert "source 'lone' has no rows in validation" in err
    assert "try --split=train, or leave out --source" in err


def test_a_store_behind_a_url_is_shown_and_traced_like_the_one_here(
    mixed_run, built, experiment, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("LMX_CACHE", str(tmp_path))
    monkeypatch.setattr(mirror, "COPIED_BYTES", 0)
    files = fsspec.filesystem("memory")
    files.put(f"{built}/", "/commands/store/", recursive=True)
    url = "memory://commands/store"
    for action in (
        "show STORE --row=3",
        f"show --config={experiment} --config.data.path=STORE",
        f"trace STORE --source=inputs --workdir={mixed_run[0]}",
    ):
        code, here, _ = run(
            capsys, "data", *action.replace("STORE", str(built)).split()
        )
        assert code == DONE
        code, there, _ = run(capsys, "data", *action.replace("STORE", url).split())
        assert code == DONE
        assert there.replace(url, str(built)) == here
    nowhere = "memory://commands/nowhere"
    code, _, err = run(capsys, "data", "trace", nowhere, "--source=inputs")
    assert code == USAGE
    assert f"there is no built store at {nowhere}" in err


def test_trace_looks_into_runs_and_tells_a_store_that_was_built_anew(
    mixed_run, built, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mixed_run[0], tmp_path / "runs" / "mine")
    _, out, _ = run(capsys, "data", "trace", built, "--source=data")
    assert out.count("runs/mine ") == 2
    tokenizer = open_built(built).tokenizer
    part = write_part(
        tmp_path / "part", tokenizer, train=[("a", "other text")], validation=[]
    )
    create(
        tmp_path / "again",
        tokenizer,
        sources={"data": Content("x", (), [part])},
        config={},
        card=lambda counts: ({}, ""),
    )
    config = json.loads((tmp_path / "runs" / "mine" / "config.json").read_text())
    config["data"]["path"] = "again"
    (tmp_path / "runs" / "mine" / "config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, "data", "trace", "again", "--source=data")
    assert code == DONE
    assert "no checkpoint of the runs looked at has seen any of this store" in out
    assert out.count("is of an earlier build of again") == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shwo"], "did you mean 'show'"),
        (["show"], "needs a STORE and --row, or --config and --step"),
        (["show", "STORE", "--step=3"], "--step is not an option of a STORE"),
        (["show", "--config=x.py", "--row=3"], "--row is not an option of --config"),
        (["show", "lmx"], "lmx is not a built store"),
        (["show", "STORE", "--row=100000"], "train has rows 0 to "),
        (["show", "STORE", "--row=-1"], "train has rows 0 to "),
        (["show", "STORE", "--split=tarin"], "did you mean 'train'"),
        (["show", "STORE", "--packing=none"], "unknown packing"),
        (["show", "STORE", "--length=0"], "context_length is 0"),
        (["show", "STORE", "--source=daat"], "did you mean 'data'"),
        (["show", "--config=EXPERIMENT", "--step=9"], "--step=9 is not a step of this"),
        (["trace", "STORE", "--source=daat"], "did you mean 'data'"),
    ],
)
def test_a_mistake_is_said_in_a_line(built, experiment, capsys, argv, message):
    words = {"STORE": built, "--config=EXPERIMENT": f"--config={experiment}"}
    code, _, err = run(capsys, "data", *(words.get(word, word) for word in argv))
    assert code == USAGE
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_with_an_example(capsys, action):
    with pytest.raises(SystemExit) as error:
        main(["data", action, "--help"])
    assert error.value.code == DONE
    out = capsys.readouterr().out
    assert f"  lmx data {action}" in out
