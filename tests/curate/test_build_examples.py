"""A build of examples: their weights are in the store, as each encoder gives them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmx.core.errors import DataError, UserError
from lmx.core.schema import DataConfig
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Processes
from lmx.data.built import TEMPLATE, open_built
from lmx.data.pipeline import prepare
from lmx.inputs.examples import FORMATS, PLAIN_TEMPLATE, chat_template
from lmx.inputs.tokenizers import train_tokenizer

QUESTIONS = [f"what is {n} and {n * n}, or {n * 7919 % 1000}?" for n in range(60)]


def chat(question, answer, **keys):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **keys},
        ]
    }


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config_of(folder, sources, **options):
    made = default_build_config()
    made.sources = {
        name: {"licence": "CC0-1.0", "uses": ("train",)} | source
        for name, source in sources.items()
    }
    made.duplicates = ()
    made.vocab_size = 400
    made.validation_fraction = 0.2
    made.bad_records = 0.05
    made.update(options)
    return build_config(made)


def built(config, out):
    stages = lambda name, items: lambda done: None  # noqa: E731 - as the caller has it
    build(config, out, runner=Processes(1), stage=stages)
    return open_built(out)


@pytest.fixture
def sources(tmp_path):
    chats = [chat(q, f"it is number {n}") for n, q in enumerate(QUESTIONS)]
    chats[7]["messages"][1]["weight"] = 0
    pairs = [{"long": f"{q} " * 3, "short": q[:12]} for q in QUESTIONS]
    code = [
        {"text": f"def f{n}():\n    return '{q}'\n"} for n, q in enumerate(QUESTIONS)
    ]
    return {
        "chats": {"path": write(tmp_path / "chats.jsonl", chats), "format": "messages"},
        "pairs": {
            "path": write(tmp_path / "pairs.jsonl", pairs),
            "format": "prompt_completion",
            "fields": {"prompt": "{long}\nShort:", "completion": " {short}"},
        },
        "code": {"path": write(tmp_path / "code.jsonl", code), "format": "infill"},
        "texts": {"path": write(tmp_path / "texts.jsonl", code)},
    }


def test_a_store_holds_what_the_encoders_give(tmp_path, sources):
    store = built(config_of(tmp_path, sources), tmp_path / "store")
    template = (store.directory / TEMPLATE).read_text()
    assert template == PLAIN_TEMPLATE
    records = {
        "chats": [chat(q, f"it is number {n}") for n, q in enumerate(QUESTIONS)],
        "pairs": [
            {"prompt": f"{q} {q} {q}\nShort:", "completion": f" {q[:12]}"}
            for q in QUESTIONS
        ],
        "code": [
            {"text": f"def f{n}():\n    return '{q}'"} for n, q in enumerate(QUESTIONS)
        ],
    }
    with chat_template(store.tokenizer, template) as compiled:
        for source in store.sources:
            if source.name == "texts":
                assert source.train.weights is None
                continue
            form = FORMATS[dict(sources[source.name])["format"]]
            encode = form.encoder(store.tokenizer, compiled)
            for split in ("train", "validation"):
                tokens = getattr(source, split)
                names = store.names(split, source.name)
                assert tokens.num_documents == len(names) > 0
                for number, name in enumerate(names):
                    record = records[source.name][int(name.split("#")[1]) - 1]
                    (expected,) = encode(record)
                    start, stop = tokens.offsets[number : number + 2]
                    assert tokens.document(number).tolist() == list(expected.ids)
                    found = tokens.weights[start:stop].tolist()
                    assert found == list(expected.weights)


def test_records_of_which_nothing_is_learned_are_counted_and_named(tmp_path, sources):
    store = built(config_of(tmp_path, sources), tmp_path / "store")
    card = json.loads((store.directory / "card.json").read_text())
    damaged = card["sources"]["chats"]["dropped"]["damaged"]
    assert damaged["documents"] == 1
    assert damaged["examples"][0]["name"].endswith("#8")
    assert "nothing is learned" in damaged["examples"][0]["why"]
    names = store.names("train", "chats") + store.names("validation", "chats")
    assert len(names) == len(QUESTIONS) - 1


def test_too_many_of_them_stop_the_build(tmp_path, sources):
    chats = [chat(q, "a", weight=0) for q in QUESTIONS[:30]]
    chats += [chat(q, "a") for q in QUESTIONS[30:]]
    write(tmp_path / "chats.jsonl", chats)
    config = config_of(tmp_path, {"chats": sources["chats"]})
    with pytest.raises(DataError, match=r"30 of 60 records.*nothing is learned"):
        built(config, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_the_chat_template_refuses_is_counted_and_bounded(tmp_path, sources):
    tokenizer = train_tokenizer("bpe", QUESTIONS, 300)
    tokenizer.save(tmp_path / "tokenizer")
    refusal = (
        "{% for message in messages %}{% if 'number 3' in message.content %}"
        "{{ raise_exception('not this one') }}{% endif %}"
    )
    template = refusal + PLAIN_TEMPLATE.partition("messages %}")[2]
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template)
    config = config_of(
        tmp_path,
        {"chats": sources["chats"]},
        tokenizer=str(tmp_path / "tokenizer"),
        bad_records=0.5,
    )
    store = built(config, tmp_path / "store")
    assert (store.directory / TEMPLATE).read_text() == template
    card = json.loads((store.directory / "card.json").read_text())
    dropped = card["sources"]["chats"]["dropped"]["no example"]
    assert dropped["documents"] == 11  # 3, 30 to 39
    assert "not this one" in dropped["examples"][0]["why"]
    strict = config_of(
        tmp_path, {"chats": sources["chats"]}, tokenizer=str(tmp_path / "tokenizer")
    )
    with pytest.raises(DataError, match=r"11 of 59 records cannot be examples"):
        built(strict, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_personal_data_is_masked_in_examples_too(tmp_path, sources):
    chats = [chat(q, f"write to a{n}@example.org") for n, q in enumerate(QUESTIONS)]
    write(tmp_path / "chats.jsonl", chats)
    config = config_of(tmp_path, {"chats": sources["chats"]}, masks=("email",))
    store = built(config, tmp_path / "store")
    text = store.tokenizer.decode(store.sources[0].train.tokens)
    assert "write to <EMAIL>" in text
    assert "@" not in text
    card = json.loads((store.directory / "card.json").read_text())
    assert card["sources"]["chats"]["masked"]["email"] == len(QUESTIONS)


@pytest.mark.parametrize("alone", [True, False])
def test_examples_are_not_cut_where_they_repeat_a_passage(tmp_path, sources, alone):
    said = "one two three four five six seven eight nine ten eleven twelve"
    write(tmp_path / "chats.jsonl", [chat(said, f"{q} {said}") for q in QUESTIONS])
    write(tmp_path / "texts.jsonl", [{"text": f"{q}\n{said}"} for q in QUESTIONS])
    chosen = {"chats": sources["chats"]}
    if not alone:
        chosen["texts"] = sources["texts"]
    config = config_of(tmp_path, chosen, repeated_words=10)
    store = built(config, tmp_path / "store")
    source = store.sources[0]
    decoded = store.tokenizer.decode([*source.train.tokens, *source.validation.tokens])
    assert decoded.count(said) == 2 * len(QUESTIONS)


def test_training_reads_the_weights_in_each_packing(tmp_path, sources):
    store = built(config_of(tmp_path, sources), tmp_path / "store")
    expected = sum(source.train.num_targets for source in store.sources)
    for packing in ("concat", "document", "best_fit"):
        config = DataConfig(path=str(store.directory), packing=packing, batch_size=4)
        corpus = prepare(config, context_length=64, seed=0, steps=10)
        rows = corpus.train_batches().rows
        batch = rows.batch(np.arange(len(rows)))
        assert batch.loss_weights.sum() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "mesages"}, "did you mean 'messages'"),
        ({"text": "{body}"}, r"is for format 'text'.*fields"),
        ({"fields": {"message": "{a}"}}, "did you mean 'messages'"),
        ({"fields": {"messages": "{a}{b}"}}, "must be one field"),
        ({"format": "text", "fields": {"text": "{a}"}}, "not for format 'text'"),
    ],
)
def test_a_format_that_cannot_be_is_refused(tmp_path, sources, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(tmp_path, {"chats": sources["chats"] | changes})
