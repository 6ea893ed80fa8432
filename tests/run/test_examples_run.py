"""Training on a store of examples, from its first lines to the chat it leaves."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from lmx.api import load
from lmx.core.config import default_config, freeze, load_experiment
from lmx.core.errors import UserError
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Processes
from lmx.data.built import open_built
from lmx.data.pipeline import prepare
from lmx.inputs.examples import PLAIN_TEMPLATE
from lmx.run.data_show import main as show
from lmx.run.train import packing_line, train

from .conftest import ROOT


def build_store(folder, name, form, records, **fields):
    """Returns the store of one source of records, in bytes."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(lines)
    config = default_build_config()
    config.sources = {
        name: {
            "path": str(folder / f"{name}.jsonl"),
            "format": form,
            "fields": fields,
            "licence": "CC0-1.0",
            "uses": ("train",),
        }
    }
    config.tokenizer = "byte"
    config.duplicates = ()
    config.validation_fraction = 0.2
    out = folder / "store"
    build(
        build_config(config),
        out,
        runner=Processes(1),
        stage=lambda name, items: lambda done: None,
    )
    return out


def small_config(store, *, context_length=128):
    config = default_config()
    config.model.width, config.model.num_layers = 16, 1
    config.model.num_heads = config.model.num_kv_heads = 2
    config.model.context_length = context_length
    config.data.path = str(store)
    config.data.packing = "best_fit"
    config.data.batch_size = 4
    config.steps = 2
    config.evals.every_steps = 2
    config.checkpoint.save_every_steps = 2
    return config


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"what is {n} times {n}?"},
                {"role": "assistant", "content": f"{n * n}" * (1 + n % 5)},
            ]
        }
        for n in range(80)
    ]
    return build_store(folder, "chats", "messages", chats)


def wrong_length(n):
    return 30 if n in (40, 41, 42) else 5 + n % 9


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    records = [
        {
            "asked": f"what is {n} times {n}?",
            "chosen": [{"role": "assistant", "content": f"{n * n}"}],
            "rejected": [{"role": "assistant", "content": "1" * wrong_length(n)}],
        }
        for n in range(5, 85)
    ]
    return build_store(folder, "pairs", "preference", records, prompt="{asked}")


def test_packed_examples_train_and_the_run_keeps_their_template(store, tmp_path):
    config = small_config(store)
    config.evals.compressors = ("gzip",)
    said: list[str] = []
    summary = train(freeze(config), tmp_path / "run", say=said.append)
    assert "'best_fit' packing" in "\n".join(said)
    # They would see the prompts, of which nothing is learned.
    assert summary["compressors"] == {}
    assert "compressors are left out" in "\n".join(said)
    assert load(str(tmp_path / "run")).chat_template == PLAIN_TEMPLATE
    source = open_built(store).sources[0].train
    learned = source.tokens[source.weights > 0]
    assert len(learned) == source.num_targets < source.num_tokens / 2


def test_pairs_are_neighbours_of_one_row(pairs):
    source = open_built(pairs).sources[0]
    assert source.train.group == source.validation.group == 2
    names = open_built(pairs).names("train", "pairs")
    assert names[::2] == names[1::2]
    corpus = prepare(
        freeze(small_config(pairs)).data, context_length=128, seed=0, steps=1
    )
    rows = corpus.train_batches().rows
    batch = rows.batch(np.arange(len(rows)))
    tokenizer, seen = corpus.tokenizer, 0
    for row in range(len(rows)):
        segments = batch.segment_ids[row]
        said = [
            tokenizer.decode(batch.tokens[row][segments == number])
            for number in range(1, segments.max() + 1)
        ]
        assert len(said) % 2 == 0
        for chosen, rejected in zip(said[::2], said[1::2], strict=True):
            question = chosen.partition("?")[0]
            assert rejected.startswith(question)
            n = int(question.split()[-1])
            assert chosen.split()[-1] == str(n * n)
            assert rejected.split()[-1] == "1" * wrong_length(n)
            seen += 1
    assert seen == source.train.num_documents // 2


@pytest.mark.parametrize(
    ("packing", "said"),
    [
        ("best_fit", r"source 'pairs', groups of 2: .*prompt_completion.*\{chosen\}"),
        ("concat", r"would part .*packing='best_fit'"),
        ("document", r"would part .*packing='best_fit'"),
    ],
)
def test_pairs_are_not_parted_and_not_all_learned(pairs, tmp_path, packing, said):
    config = small_config(pairs)
    config.data.packing = packing
    with pytest.raises(UserError, match=said):
        train(freeze(config), tmp_path / "run", say=lambda text: None)


def test_pairs_are_shown_side_by_side(pairs, capsys):
    assert show([str(pairs), "--row=0"]) == 0
    first = capsys.readouterr().out
    assert "assistant:" in first
    assert show([str(pairs), "--row=0", "--packing=best_fit"]) == 0
    assert capsys.readouterr().out == first
    assert show([str(pairs), "--row=0", "--length=93"]) == 0
    assert "pairs are longer than a row: left out" in capsys.readouterr().out


def test_pairs_longer_than_a_row_are_told_and_many_are_refused(pairs):
    data = freeze(small_config(pairs)).data
    offsets = open_built(pairs).sources[0].train.offsets
    lengths = np.diff(offsets).reshape(-1, 2).sum(axis=1) - 2
    most = int(lengths.max()) - 1
    corpus = prepare(data, context_length=most, seed=0, steps=1)
    longer = int((lengths > most).sum())
    assert 0 < longer < len(lengths) / 10
    assert f", {longer} pairs longer than a row are left out" in packing_line(corpus)
    with pytest.raises(UserError, match=r"more than 10%; raise it"):
        prepare(data, context_length=int(np.median(lengths)) - 1, seed=0, steps=1)


def test_a_store_with_prompts_trains_prefix_attention_and_its_model_answers(
    store, tmp_path
):
    config = small_config(store)
    config.model.attention, config.model.num_layers = "prefix", 2
    config.steps = 60
    config.optim.warmup_steps = 5
    config.evals.every_steps = config.checkpoint.save_every_steps = 60
    train(freeze(config), tmp_path / "run", say=lambda text: None)
    model = load(str(tmp_path / "run"))
    asked = model.chat_prompt([{"role": "user", "content": "what is 4 times 4?"}])
    reply = "".join(model.stream(asked, temperature=0, max_new_tokens=4))
    ids = list(asked)
    for _ in range(4):
        scores = model.logits(ids, prompt_tokens=len(asked))[-1]
        assert (scores != model.logits(ids)[-1]).any()  # the prompt matters
        ids.append(int(scores.argmax()))
        if ids[-1] in model.tokenizer.eos_ids:
            break
    assert model.tokenizer.decode(ids[len(asked) :]) == reply
    for form in ("hf", "gguf"):
        with pytest.raises(UserError, match=r"'prefix' cannot be exported"):
            model.save(tmp_path / form, to=form)
    first, second = model.embed(["some text", "some test"])
    assert np.isfinite(first).all()
    assert (first != second).any()


def test_the_experiment_of_denoising_builds_and_takes_smoke_steps(tmp_path):
    """On files that are like its own, but small."""
    words = [f"{n} and {n * n}" for n in range(300)]
    records = {
        "text/presidential_addresses": [
            {"text": ", ".join(words[n : n + 30])} for n in range(0, 260, 4)
        ],
        "summarize/package_descriptions": [
            {"summary": words[n], "text": " or ".join(words[n : n + 9])}
            for n in range(60)
        ],
        "pairs/en_es_verses": [
            {"en": f"it is {word}", "es": f"esto es {word}"} for word in words
        ],
    }
    for name, lines in records.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir()
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    builds = load_experiment(f"{ROOT}/experiments/data/denoise.py:{tmp_path}")
    builds.vocab_size, builds.duplicates = 384, ()
    for source in builds.sources.values():
        if "chunk_tokens" in source["fields"]:
            source["fields"]["chunk_tokens"] = "40"
    build(
        build_config(builds),
        tmp_path / "store",
        runner=Processes(1),
        stage=lambda name, items: lambda done: None,
    )
    sources = {s.name: s.train for s in open_built(tmp_path / "store").sources}
    shares = {n: s.num_targets / s.num_tokens for n, s in sources.items()}
    assert 0.15 < shares["addresses"] < 0.3  # 15 % of a text, its sentinels, an end
    assert 0.4 < shares["packages"] < 0.6
    assert sources["addresses"].num_documents > 2 * 60  # chunks
    config = load_experiment(f"{ROOT}/experiments/denoise.py:smoke")
    config.data.path = str(tmp_path / "store")
    summary = train(freeze(config), tmp_path / "run", say=lambda text: None)
    assert summary["step"] == config.steps
    assert sorted(summary["sources"]) == sorted(sources)


def test_prefix_attention_needs_a_prompt_somewhere(tmp_path):
    config = small_config(tmp_path)
    for name in ("a", "b", "c", "d"):
        text = f"text {name}, all of which is learned. " * 99
        (tmp_path / f"{name}.txt").write_text(text)
    config.data.path = str(tmp_path)
    config.data.tokenizer, config.data.packing = "byte", "concat"
    config.model.attention = "prefix"
    with pytest.raises(UserError, match=r"has none: every token has a loss"):
        train(freeze(config), tmp_path / "run", say=lambda text: None)


def test_a_causal_model_may_learn_to_read_prompts_in_both_directions(store, tmp_path):
    config = small_config(store)
    config.optim.learning_rate = 1e-12
    train(freeze(config), tmp_path / "causal", say=lambda text: None)
    config.model.init_from = str(tmp_path / "causal")
    config.model.attention = "prefix"
    train(freeze(config), tmp_path / "prefix", say=lambda text: None)
    causal, prefix = (load(str(tmp_path / name)) for name in ("causal", "prefix"))
    assert (causal.model.attention, prefix.model.attention) == ("causal", "prefix")
    ids = list(range(3, 12))
    kept, changed = (m.logits(ids, prompt_tokens=4) for m in (causal, prefix))
    np.testing.assert_allclose(prefix.logits(ids), kept, atol=1e-2)
    assert np.abs(changed - kept).max() > 1e-2
