"""The harness's own model on transformers and ours give the same numbers.

Reference: `lm_eval.models.huggingface.HFLM` on a model that lmx exported.
"""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} ",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "tiny_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}
ROWS = [
    {
        "question": f"What is {i} plus {'one ' * (i % 5)}?",
        "choices": [str(i), str(i + 1), "many more of them"],
        "gold": i % 3,
        "text": "".join(f"{i} and {j}, " for j in range(4 * i)) or "nothing",
    }
    for i in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """YAML tasks over a local file, as users of the harness write their own."""
    folder = tmp_path_factory.mktemp("harness")
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, fields in TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            **fields,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def model():
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from lmx.api import LanguageModel, imported_config
    from lmx.core.model_schema import ModelConfig
    from lmx.inputs.tokenizers import train_tokenizer
    from lmx.models.decoder import Decoder
    from lmx.models.sizes import resolve

    tokenizer = train_tokenizer("bpe", [row["text"] for row in ROWS], 320)
    config = ModelConfig(
        width=32,
        num_layers=2,
        num_heads=2,
        context_length=64,
        vocab_size=tokenizer.vocab_size,
        compute_dtype="float32",
    )
    shape = jnp.zeros((1, 4), jnp.int32)
    boxed = Decoder(resolve(config)).init(jax.random.key(0), shape)["params"]
    params = jax.tree.map(lambda x: 4 * x, nn.meta.unbox(boxed))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return LanguageModel(
        imported_config(config), params, tokenizer, chat_template=template
    )


def results(lm, folder, tasks, **options):
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    return {name: [row["resps"] for row in found["samples"][name]] for name in tasks}


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    """Our model as the harness sees it, and a way to make its own of the same."""
    pytest.importorskip("torch")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lmx.evaluate.harness import HarnessModel
    from lmx.run.subject import subject_of

    folder = tmp_path_factory.mktemp("exported") / "hf"
    model.save(folder)

    def reference(**options):
        return huggingface.HFLM(
            pretrained=str(folder),
            device="cpu",
            dtype="float32",
            batch_size=8,
            **options,
        )

    return HarnessModel(
        subject_of(model), name="ours", watch=lambda *_: None
    ), reference


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_choices_and_texts_are_those_of_the_harness_on_transformers(both, folder, chat):
    ours, reference = both
    asked = ["tiny_choice", "tiny_writing"]
    mine, theirs = (
        results(lm, folder, asked, apply_chat_template=chat)
        for lm in (ours, reference())
    )
    assert mine["tiny_writing"] == theirs["tiny_writing"]
    for first, second in zip(mine["tiny_choice"], theirs["tiny_choice"], strict=True):
        for ((nats, greedy),), ((expected, also),) in zip(first, second, strict=True):
            assert float(nats) == pytest.approx(float(expected), abs=2e-3)
            assert greedy == also


def test_rolling_windows_are_those_of_the_harness_on_transformers(both, folder):
    """Its own model otherwise predicts a second BOS after the first: not asked here."""
    ours, reference = both
    mine, theirs = (
        results(lm, folder, ["tiny_rolling"])["tiny_rolling"]
        for lm in (ours, reference(add_bos_token=False))
    )
    for (first,), (second,) in zip(mine, theirs, strict=True):
        assert float(_only(first)) == pytest.approx(float(_only(second)), abs=5e-3)


def _only(value):
    return value[0] if isinstance(value, (list, tuple)) else value
