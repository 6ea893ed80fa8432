"""A model of ours goes out and comes back: the same weights, logits and text.

No reference but lmx itself; where transformers is installed, `lmx import` takes it as
one. What is wrong with a published model is refused in `test_refusals.py`.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import resource
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers

import lmx
from lmx.__main__ import main
from lmx.api import LanguageModel, imported_config
from lmx.core.errors import DATA, DONE, USAGE, StorageError, UserError
from lmx.core.schema import ModelConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer
from lmx.interop.hf_config import write_config
from lmx.interop.parity import has_reference
from lmx.interop.safetensors_file import SINGLE
from lmx.models.decoder import abstract_params
from lmx.models.sizes import resolve

TEXT = "the quick brown fox jumps over the lazy dog; 12 + 34 = 46.\n"
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[reply]"
REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
SMALL = {
    "context_length": 64,
    "width": 32,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 64,
    "compute_dtype": "float32",
}
GPT2 = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "biases": "all"}
LLAMA = {"num_kv_heads": 2, "head": "untied", "norm_epsilon": 1e-6}
FORMS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama tied": {"head_dim": 10},
    "llama linear": {"rope_scaling": "linear", "rope_factor": 4.0, "rope_base": 5e5},
    "llama 3": {
        "rope_scaling": "llama3",
        "rope_factor": 8.0,
        "rope_original_length": 16,
    },
    "mistral": {**LLAMA, "pattern": ("window",), "window": 8},
    "qwen2": {**LLAMA, "biases": "qkv"},
    "qwen2 windows": {"biases": "qkv", "pattern": ("attention", "window"), "window": 8},
    "qwen3": {**LLAMA, "qk_norm": "rmsnorm"},
}


def tokenizer_of(kind):
    """Returns one of ours, or 'gpt2': one made elsewhere, of GPT-2's form."""
    if kind != "gpt2":
        return train_tokenizer(kind, [TEXT] * 3, 300)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([TEXT] * 3, trainer=trainer)
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id"), 0)
    meta = {"kind": "foreign", **ids, "unk_id": None, "prefix_ids": []}
    return Tokenizer(backend.to_str(), meta)


def model_of(form, kind="byte", template=TEMPLATE, **options):
    """Returns a model with random weights: no bias is 0 and no scale is 1."""
    tokenizer = tokenizer_of(kind)
    config = ModelConfig(**{**SMALL, **FORMS[form], **options})
    model = resolve(config, vocab_size=tokenizer.vocab_size)
    shapes = flatten_with_names(nn.meta.unbox(abstract_params(model)))
    random = np.random.default_rng(0)
    params = nest(
        {
            name: (
                name.endswith("/scale") + 0.2 * random.normal(size=leaf.shape)
            ).astype(np.float32)
            for name, leaf in shapes
        }
    )
    return LanguageModel(
        imported_config(model), params, tokenizer, chat_template=template
    )


def assert_same_params(found, expected):
    found = dict(flatten_with_names(found))
    expected = dict(flatten_with_names(expected))
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value, strict=True)


def assert_same_model(found, expected):
    """The same in every bit: weights, logits, text, and the prompts of a chat."""
    assert_same_params(found.params, expected.params)
    ids = expected.tokenizer.encode(TEXT)
    assert found.tokenizer.encode(TEXT) == ids
    np.testing.assert_array_equal(found.logits(ids), expected.logits(ids))
    said = expected.generate(TEXT[:9], temperature=0, max_new_tokens=12)
    assert found.generate(TEXT[:9], temperature=0, max_new_tokens=12) == said
    assert found.chat_template == expected.chat_template
    messages = [{"role": "user", "content": "the fox"}]
    assert found.chat_prompt(messages) == expected.chat_prompt(messages)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def ours(request):
    return model_of(request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A published llama, to copy and to damage; its model beside it."""
    model = model_of("llama", "gpt2")
    return model.save(tmp_path_factory.mktemp("source") / "hf"), model


@pytest.fixture
def copied(source, tmp_path):
    return Path(shutil.copytree(source[0], tmp_path / "copy"))


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


@pytest.mark.parametrize("kind", ["byte", "bpe", "gpt2"])
@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_a_model_comes_back_from_hf_as_it_was(tmp_path, form, kind):
    model = model_of(form, kind)
    assert_same_model(lmx.load(model.save(tmp_path / "out")), model)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_text_begins_with_bos_after_the_journey_if_it_did_before(tmp_path, kind):
    model = model_of("llama", kind)
    found = lmx.load(model.save(tmp_path / "out"))
    assert found.tokenizer.prefix_ids == model.tokenizer.prefix_ids
    np.testing.assert_array_equal(found.logprobs(TEXT), model.logprobs(TEXT))


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_all_that_ends_a_reply_goes_out_and_comes_back(tmp_path, to):
    model = model_of("llama", "gpt2")
    model.tokenizer.eos_ids = (0, 7)
    path = model.save(tmp_path / "out", to=to)
    assert lmx.load(path).tokenizer.eos_ids == (0, 7)
    if to == "hf" and importlib.util.find_spec("transformers"):
        from transformers import GenerationConfig

        assert GenerationConfig.from_pretrained(path).eos_token_id == [0, 7]


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram", "gpt2"])
def test_transformers_encodes_an_exported_tokenizer_s_text_the_same(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    model = model_of("llama", kind)
    theirs = transformers.AutoTokenizer.from_pretrained(
        model.save(tmp_path / "out"), local_files_only=True
    )
    ours = model.tokenizer
    for text in (TEXT, "  def f(x):\n\n\treturn 'é' + \"你好\" # 12345 👩‍👧 "):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [*ours.prefix_ids, *ids]
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eos_id


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back_as_the_same_architecture(tmp_path, form):
    model = model_of(form)
    folder = model.save(tmp_path / "out")
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == form.split()[0]
    found = lmx.load(folder)
    idle = {"param_dtype", "kernels"}
    assert {
        key: value
        for key, value in dataclasses.asdict(found.model).items()
        if value != getattr(model.model, key) and key not in idle
    } == {}
    assert_same_params(found.params, model.params)


@pytest.mark.parametrize(
    "spelled",
    [
        {"rope_dim": 8},
        {
            "rope_scaling": "yarn",
            "rope_original_length": 16,
            "rope_factor": 4.0,
            "rope_turns": (1.0, 32.0),
        },
    ],
)
def test_defaults_that_are_spelled_out_are_exported(spelled):
    shape = {"width": 16, "num_heads": 2, "num_layers": 1, "context_length": 64}
    model = resolve(ModelConfig(**shape, **spelled), vocab_size=40)
    assert write_config(model, "llama")[0] == "llama"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(tmp_path, ours, dtype):
    found = lmx.load(ours.save(tmp_path / "out", dtype=dtype))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = jax.tree.map(lambda x: x.astype(kind).astype(np.float32), ours.params)
    assert_same_params(found.params, rounded)


@pytest.mark.parametrize(
    "form", ["gpt2", "llama", "qwen2", "qwen3", "llama linear", "llama 3"]
)
def test_a_model_comes_back_from_gguf_as_it_was(tmp_path, form):
    model = model_of(form, "gpt2")
    path = model.save(tmp_path / "out", to="gguf")
    assert path == tmp_path / "out" / "model.gguf"
    assert_same_model(lmx.load(path), model)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_int8_is_off_by_half_a_step_at_most(tmp_path, form):
    model = model_of(form, "gpt2")
    found = lmx.load(model.save(tmp_path / "out", to="gguf", dtype="int8"))
    theirs = dict(flatten_with_names(found.params))
    rounded = 0
    for name, value in flatten_with_names(model.params):
        error = np.abs(np.asarray(theirs[name]) - value).max()
        # A step is 1/127 of the largest of 32 values, kept in half precision.
        assert error <= np.abs(value).max() * (0.5 / 127 + 2**-10), name
        rounded += error > 0
    assert rounded > 5
    ids = model.tokenizer.encode(TEXT)
    expected = model.logits(ids)
    assert np.abs(found.logits(ids) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_tokenizer_that_gguf_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    model = model_of("llama", "bpe")
    with pytest.raises(UserError, match="safetensors"):
        model.save(tmp_path / "out", to="gguf")
    assert names_of(tmp_path) == []


def test_a_folder_in_use_is_not_exported_to(tmp_path, ours):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("out", "file"):
        with pytest.raises(UserError, match=f"{name} is there already"):
            ours.save(tmp_path / name)
    assert names_of(tmp_path) == ["file", "out"]
    assert names_of(tmp_path / "out") == ["mine"]


def test_an_empty_or_a_deep_folder_is_exported_to(tmp_path, ours):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert ours.save(folder) == folder
        assert (folder / SINGLE).exists()


@pytest.mark.parametrize(
    ("to", "dtype", "message"),
    [
        ("hf", "int8", "dtype of an export to hf 'int8'"),
        ("hf", "float33", "did you mean 'float32'"),
        ("gguf", "int4", "did you mean 'int8'"),
        ("onnx", "float32", "export format 'onnx'"),
    ],
)
def test_an_unknown_dtype_or_format_is_refused(tmp_path, ours, to, dtype, message):
    with pytest.raises(UserError, match=message):
        ours.save(tmp_path / "out", to=to, dtype=dtype)
    assert names_of(tmp_path) == []


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("positions", "alibi"),
        ("mlp", "relu_squared"),
        ("sublayers", "parallel"),
        ("qk_norm", "layernorm"),
    ],
)
def test_what_no_family_has_is_refused_by_name(tmp_path, to, option, value):
    model = model_of("llama tied", **{option: value})
    with pytest.raises(UserError, match=rf"model\.{option}={value!r}"):
        model.save(tmp_path / "out", to=to)
    assert names_of(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"biases": "attention"}, "model.biases='attention' of the family 'llama'"),
        (
            {"rope_scaling": "yarn", "rope_original_length": 8, "rope_factor": 8.0},
            "model.rope_scaling='yarn' of the family 'llama'",
        ),
        ({"ffns": ("moe",), "num_experts": 2}, "a model of the family 'mixtral'"),
    ],
)
def test_what_gguf_cannot_say_is_written_for_transformers(tmp_path, changes, said):
    model = model_of("llama tied", **changes)
    with pytest.raises(UserError, match=f"{said}.* cannot be written to GGUF"):
        model.save(tmp_path / "out", to="gguf")
    assert names_of(tmp_path) == []
    model.save(tmp_path / "out", to="hf")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("limit", [0, 200, 30_000])
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_leaves_nothing(tmp_path, source, to, limit, existing):
    folder = tmp_path / "out"
    if existing:
        folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError, match="free some space"):
            source[1].save(folder, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_of(tmp_path) == (["out"] if existing else [])
    assert not existing or names_of(folder) == []
    source[1].save(folder, to=to)


@pytest.mark.parametrize("last", ["tokenizer.json", "tokenizer_config.json"])
def test_a_disk_that_fills_up_at_the_end_leaves_nothing(
    tmp_path, monkeypatch, ours, last
):
    write_text = Path.write_text

    def full(path, *args, **kwargs):
        if path.name == last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left on device"):
        ours.save(tmp_path / "out")
    assert names_of(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, ours):
    def interrupted(folder, *_):
        (folder / SINGLE).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lmx.interop.export.write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours.save(tmp_path / "out")
    assert names_of(tmp_path) == []


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_imported_model_is_its_source(tmp_path, capsys, source, to):
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


def test_an_import_into_bfloat16_is_rounded_once(tmp_path, capsys, source):
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
def test_an_imported_model_is_exported_again_as_it_was(tmp_path, capsys, source, to):
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
    tmp_path, capsys, copied
):
    sentencepiece = pytest.importorskip("sentencepiece")
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").write_text("{}")
    configured(copied, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    (copied / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    with open(copied / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT] * 3),
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
    assert model.tokenizer.encode(TEXT) == theirs.encode(TEXT)
    assert model.tokenizer.eos_ids == (2, 3)
    assert isinstance(model.generate(TEXT, temperature=0, max_new_tokens=9), str)
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
    assert found.encode(TEXT) == theirs.encode(TEXT)
    assert found.decode(found.encode(TEXT)) == theirs.decode(theirs.encode(TEXT))
    assert (found.prefix_ids, found.eos_ids) == ((1,), (2, 3))
    found = lmx.load(model.save(tmp_path / "gguf", to="gguf")).tokenizer
    assert found.encode(TEXT) == theirs.encode(TEXT)
    assert (found.prefix_ids, found.eos_ids) == ((1,), (2, 3))


def test_a_name_that_is_neither_here_nor_on_the_hub_says_so(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    def missing(*_, **__):
        raise OSError("404")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no {tmp_path}/runs/a, and the Hub .*404"):
        lmx.load("runs/a")


def test_a_model_without_a_chat_template_does_not_chat(tmp_path, capsys):
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
