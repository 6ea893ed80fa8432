"""`lmx tokenizer` trains what training uses, and compares on text that nobody saw."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from lmx.__main__ import main
from lmx.core.errors import DATA, DONE, USAGE
from lmx.core.schema import DataConfig
from lmx.data.pipeline import prepare
from lmx.data.sources import open_source, read_documents
from lmx.inputs.tokenizers import KINDS, Tokenizer, train_tokenizer
from lmx.models.counting import flops_per_token
from lmx.models.sizes import resolve
from lmx.run.equal_flops import small_experiment, with_budget
from lmx.run.tokenizer_text import TextOptions, read_texts

WORDS = {
    "en": "the cat and dog sat on a mat while seven birds sang of freedom",
    "ru": "кошка и собака сидели пока семь птиц пели песни свободы",
    "zh": "人 生 而 自 由 在 尊 严 和 权 利 上 一 律 平 等 他 们 赋 有 理 性 良 心",
}


def lines_of(language, count, seed):
    words = WORDS[language].split()
    space = "" if language == "zh" else " "
    for line in range(count):
        picks = [(seed * 7 + line * 13 + i * i * (line % 5 + 1)) for i in range(9)]
        yield f"{line} " + space.join(words[p % len(words)] for p in picks) + ".\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Records of three languages in two documents each."""
    path = tmp_path_factory.mktemp("text") / "languages.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf8") as file:
        for seed in (1, 2):
            for language in WORDS:
                whole = "".join(lines_of(language, 60, seed))
                file.write(json.dumps({"lang": language, "body": whole}) + "\n")
    return path


def lmx(capsys, *argv):
    try:
        code = main(["tokenizer", *map(str, argv)])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_training_would_train(kind, tmp_path, capsys):
    text, out = tmp_path / "text", tmp_path / "out"
    text.mkdir()
    for n in range(40):
        (text / f"{n}.txt").write_text(f"{n}, " + "".join(lines_of("en", 9, n)))
    argv = [f"--kind={kind}", "--vocab_size=300", f"--text={text}", f"--out={out}"]
    code, told, _ = lmx(capsys, "train", *argv, "--held_out=0.3")
    assert code == DONE
    saved = Tokenizer.load(out)
    source = open_source(str(text), text_field="text", cache_dir=tmp_path)
    found = list(
        read_documents(
            source, validation_fraction=0.3, max_documents=None, tally=Counter()
        )
    )
    seen = [d.text for d in found if not d.held_out]
    if kind != "unigram":  # its training is not repeatable
        expected = train_tokenizer(kind, seen, 300)
        assert saved.fingerprint == expected.fingerprint
    judged = [d.text for d in found if d.held_out]
    assert len(judged) > 5
    ids = sum(len(saved.encode(t)) for t in judged)
    assert f"{sum(len(t.encode()) for t in judged) / ids:.3f}" in told
    assert f"{saved.vocab_size:,}" in told
    code, _, err = lmx(capsys, "train", *argv)
    assert code == USAGE
    assert "holds a tokenizer already" in err


def test_of_few_documents_the_same_one_is_held_out_as_in_training(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"{n}, " + "".join(lines_of("en", 9, n)))
    found = read_texts(TextOptions(str(tmp_path), "text", 1e-6), tmp_path.parent)
    config = DataConfig(
        path=str(tmp_path), validation_fraction=1e-6, tokenizer="byte", vocab_size=259
    )
    corpus = prepare(config, context_length=8, seed=0, steps=1, report=str)
    (judged,) = found.held_out.values()
    assert "".join(judged).encode() == corpus.validation_text()
    assert len(list(found.training())) == 3


def test_compare_measures_lines_that_were_not_trained_on(text, tmp_path, capsys):
    found = tmp_path / "found.json"
    picture = tmp_path / "found.png"
    code, out, err = lmx(
        capsys,
        *("compare", "byte", "bpe:300", "char:60", f"--text={text}"),
        *("--text_field=body", "--by=lang", "--values=zh,en", "--held_out=0.3"),
        *(f"--json={found}", f"--plot={picture}"),
    )
    assert code == DONE, err
    report = json.loads(found.read_text("utf8"))
    lines = [
        line
        for seed in (1, 2)
        for language in ("en", "zh")
        for line in lines_of(language, 60, seed)
    ]
    byte = report["tokenizers"]["byte"]
    assert byte["all"]["bytes_per_token"] == 1
    # Once each, and fewer than there are: the others were trained on.
    assert 0.1 < byte["all"]["documents"] / len(set(lines)) < 0.5
    for part in ("all", "by"):
        assert report["tokenizers"]["bpe:300"][part]
    assert list(byte["by"]) == ["en", "zh"]
    assert sum(m["bytes"] for m in byte["by"].values()) == byte["all"]["bytes"]
    # A Chinese word is a letter, of three bytes here; the number before it is one too.
    zh = byte["by"]["zh"]
    assert 2.5 < zh["tokens_per_word"] < 3.2
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = out[out.index("bytes per token") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["zh", "en"]


def test_compare_opens_tokenizers_wherever_they_come_from(run_copy, text, capsys):
    other = run_copy.parent / "other"
    Tokenizer.load(run_copy / "tokenizer").save(other)
    (other / "meta.json").unlink()
    code, out, err = lmx(
        capsys,
        *("compare", f"run={run_copy}", other / "tokenizer.json", f"dir={other}"),
        *(f"--text={text}", "--text_field=body", "--held_out=0.4"),
    )
    assert code == DONE, err
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert [row[0] for row in rows] == ["run", "tokenizer", "dir"]
    assert rows[0][1:] == rows[1][1:] == rows[2][1:]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["compare", "bpe:300"], USAGE, "--text"),
        (["compare", "bpe", "--text=."], USAGE, "names no size"),
        (["compare", "bp:300", "--text=."], USAGE, "did you mean 'bpe'?"),
        (["compare", "nowhere", "--text=."], USAGE, "no tokenizer 'nowhere'"),
        (["compare", "byte", "byte", "--text=."], USAGE, "two tokenizers"),
        (["compare", "byte", "--text=nowhere.txt"], DATA, "nowhere.txt"),
        (["compare", "byte", "--text=.", "--held_out=2"], USAGE, "below 1"),
        (["compare", "byte", "--text=.", "--values=a"], USAGE, "--by"),
        (["compare", "byte", "--text=.", "--json=no/x.json"], USAGE, "no folder"),
        (
            ["compare", "byte", "--text=.", "--config.model.width=8"],
            USAGE,
            "--train_flops",
        ),
        (["train", "--kind=bpee", "--text=.", "--out=x"], USAGE, "did you mean 'bpe'?"),
        (["trian"], USAGE, "did you mean 'train'?"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    argv, code, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text("".join(lines_of("en", 3, n)))
    found, out, err = lmx(capsys, *argv)
    assert found == code, err
    assert message in err
    assert len((out + err).strip().splitlines()) <= 3


def test_a_field_that_is_not_there_is_told_with_the_nearest(text, capsys):
    argv = ["compare", "byte", f"--text={text}", "--text_field=body"]
    code, _, err = lmx(capsys, *argv, "--by=lagn")
    assert code == DATA
    assert "did you mean 'lang'?" in err
    code, _, err = lmx(capsys, *argv, "--by=lang", "--values=fr")
    assert code == USAGE
    assert "lang='fr'" in err


SMALL = [
    *("--config.model.width=32", "--config.model.num_layers=2"),
    *("--config.model.num_heads=2", "--config.model.context_length=32"),
    "--config.data.batch_size=4",
]


def test_a_model_learns_from_each_tokenizer_for_equal_flops(text, tmp_path, capsys):
    found = tmp_path / "found.json"
    argv = ["compare", "bpe:260", "word:260", f"--text={text}", "--text_field=body"]
    argv += ["--split=lines", "--held_out=0.3", f"--json={found}", *SMALL]
    code, _, err = lmx(capsys, *argv, "--train_flops=1e4")
    assert code == USAGE
    assert "buys 0 steps" in err
    code, _, err = lmx(capsys, *argv, "--train_flops=nan")
    assert code == USAGE
    assert "--train_flops=nan" in err
    code, out, err = lmx(capsys, *argv, "--train_flops=8e8")
    assert code == DONE, err
    report = json.loads(found.read_text("utf8"))["tokenizers"]
    for name in ("bpe:260", "word:260"):
        run, whole = report[name]["equal_flops"], report[name]["all"]
        assert abs(run["flops"] / 8e8 - 1) < 1 / run["steps"]
        hidden = 8 * whole["bytes_behind_unknown"] / whole["bytes"]
        assert run["bits_per_byte"] == run["predicted_bits_per_byte"] + hidden
        # Better than a byte at random, and than a token at random.
        bits = np.log2(260) / whole["bytes_per_token"]
        assert 0 < run["predicted_bits_per_byte"] < min(8, bits)
    assert report["bpe:260"]["all"]["bytes_behind_unknown"] == 0
    assert report["word:260"]["all"]["bytes_behind_unknown"] > 0
    assert "bits/byte" in out


def test_steps_are_what_the_flops_buy(tmp_path):
    overrides = [part.removeprefix("--config.").split("=") for part in SMALL]
    base = small_experiment(tmp_path / "x", fraction=0.1, seed=3, overrides=overrides)
    spent = []
    for size in (259, 4096, 50_000):
        config = with_budget(base, size, 1e12)
        step = 4 * 32 * flops_per_token(resolve(base.model, vocab_size=size))
        spent.append(config.steps * step)
        assert abs(spent[-1] - 1e12) <= step / 2
        assert config.optim.warmup_steps == config.steps // 10
        assert config.seed == 3
    assert max(spent) / min(spent) < 1.01


def test_what_is_made_equal_cannot_be_set(text, capsys):
    argv = ["compare", "byte", f"--text={text}", "--text_field=body", "--split=lines"]
    code, _, err = lmx(capsys, *argv, "--train_flops=1e9", "--config.steps=9")
    assert code == USAGE
    assert "cannot be set here" in err
