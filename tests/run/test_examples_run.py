"""Training on a store of examples, from its first lines to the chat it leaves."""

from __future__ import annotations

import json

import pytest

from lmx.api import load
from lmx.core.config import default_config, freeze
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Processes
from lmx.data.built import open_built
from lmx.inputs.examples import PLAIN_TEMPLATE
from lmx.run.train import train


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
    lines = "".join(json.dumps(chat) + "\n" for chat in chats)
    (folder / "chats.jsonl").write_text(lines)
    config = default_build_config()
    config.sources = {
        "chats": {
            "path": str(folder / "chats.jsonl"),
            "format": "messages",
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


def test_packed_examples_train_and_the_run_keeps_their_template(store, tmp_path):
    config = default_config()
    config.model.width, config.model.num_layers = 16, 1
    config.model.num_heads = config.model.num_kv_heads = 2
    config.model.context_length = 128
    config.data.path = str(store)
    config.data.packing = "best_fit"
    config.data.batch_size = 4
    config.steps = 2
    config.evals.every_steps = 2
    config.checkpoint.save_every_steps = 2
    said: list[str] = []
    train(freeze(config), tmp_path / "run", say=said.append)
    assert "'best_fit' packing" in "\n".join(said)
    assert load(str(tmp_path / "run")).chat_template == PLAIN_TEMPLATE
    source = open_built(store).sources[0].train
    learned = source.tokens[source.weights > 0]
    assert len(learned) == source.num_targets < source.num_tokens / 2
