"""Encoders against transformers: BertModel's hidden states and gradients, embeddings.

The tiny models are random; `test_real_models.py` has a trained one.
"""

from __future__ import annotations

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.__main__ import main
from lmx.api import load
from lmx.core.errors import DATA, DONE, USAGE, UserError
from lmx.core.schema import ObjectiveConfig
from lmx.generate.embedding import embed
from lmx.interop.hf_config import read_config, write_config
from lmx.interop.hf_names import BERT
from lmx.interop.parity import parity
from lmx.interop.pretrained import open_pretrained
from lmx.interop.safetensors_file import Safetensors
from lmx.interop.sentence_files import read_pooling
from lmx.interop.weights import published
from lmx.models.decoder import Decoder
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b"]
LENGTH = 24
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}


def modules(folder, *, mode="mean_tokens", names=("Transformer", "Pooling")):
    """Writes the files that say how hidden states are pooled."""
    entries = [
        {"idx": i, "path": f"{i}_{name}" if i else "", "type": f"x.models.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 16, f"pooling_mode_{mode}": True}
    settings |= {"pooling_mode_max_tokens": mode == "max_tokens"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder that transformers saved, and its model."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config)
    with torch.no_grad():  # biases and norms start as zeros and ones: hide no mix-up
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder, safe_serialization=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return folder, model


def tokens_of(shape, seed=0):
    return np.random.default_rng(seed).integers(0, len(WORDS), shape)


def reference(model, tokens, mask=None):
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        out = model(torch.tensor(tokens), attention_mask=mask)
    return out.last_hidden_state.numpy()


def states(found, params, tokens, **inputs):
    @jax.jit
    def run(params, tokens):
        return Decoder(found.model).apply({"params": params}, tokens, **inputs)

    return np.asarray(run(params, jnp.asarray(tokens)))


def test_hidden_states_are_those_of_transformers(bert):
    folder, model = bert
    found, tokens = open_pretrained(folder), tokens_of((2, LENGTH))
    expected = reference(model, tokens)
    assert np.abs(expected).max() > 1
    got = states(found, found.params(), tokens)
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_padding_and_packing_change_no_hidden_state(bert):
    folder, model = bert
    found = open_pretrained(folder)
    first, second = tokens_of((1, 9)), tokens_of((1, 12), seed=1)
    tokens = np.concatenate([first, second, tokens_of((1, 3), seed=2)], axis=1)
    segments = np.repeat([1, 2, 0], [9, 12, 3])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (9, 12, 3)])[None]
    packed = states(
        found,
        found.params(),
        tokens,
        segment_ids=jnp.asarray(segments),
        positions=jnp.asarray(positions, jnp.int32),
    )
    for part, document in ((slice(0, 9), first), (slice(9, 21), second)):
        expected = reference(model, document)
        np.testing.assert_allclose(packed[:, part], expected, atol=1e-4, rtol=0)
    padded = np.concatenate([first, tokens_of((1, 5), seed=3)], axis=1)
    mask = np.repeat([1, 0], [9, 5])[None].astype(np.int32)
    got = states(found, found.params(), padded, segment_ids=jnp.asarray(mask))
    expected = reference(model, padded, mask)
    np.testing.assert_allclose(got[:, :9], expected[:, :9], atol=1e-4, rtol=0)


def test_the_last_token_is_seen_by_the_first(bert):
    folder, _ = bert
    found, tokens = open_pretrained(folder), tokens_of((1, LENGTH))
    before = states(found, found.params(), tokens)
    tokens[0, -1] = (tokens[0, -1] + 1) % len(WORDS)
    after = states(found, found.params(), tokens)
    assert np.abs(after - before)[0].max(axis=-1).min() > 1e-4


def test_gradients_are_those_of_transformers(bert):
    folder, model = bert
    found = open_pretrained(folder)
    # Token 0 is padding there and gets no gradient, wherever it stands.
    tokens = np.maximum(tokens_of((2, 10)), 1)
    mask = np.ones((2, 10), np.int32)
    mask[1, 6:] = 0
    probe = np.random.default_rng(4).normal(size=(2, 10, 16)).astype(np.float32)
    probe *= mask[:, :, None]

    def loss(params):
        hidden = Decoder(found.model).apply(
            {"params": params}, jnp.asarray(tokens), segment_ids=jnp.asarray(mask)
        )
        return jnp.sum(hidden * probe)

    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, found.params()))
    model.zero_grad()
    out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    (out.last_hidden_state * torch.tensor(probe)).sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    for name, _, make in published(found.model, BERT, grads):
        expected = theirs[name].numpy()
        scale = np.abs(expected).max() + 1e-3
        error = np.abs(np.asarray(make()) - expected).max() / scale
        # The bias of the keys has no gradient but rounding's.
        assert error < 1e-4 or (name.endswith("key.bias") and scale < 2e-3), name


def test_what_is_exported_is_the_encoder_without_its_pooler(bert, tmp_path):
    folder, model = bert
    lm = load(folder)
    theirs, ours = Safetensors(folder), Safetensors(lm.save(tmp_path / "out"))
    assert set(theirs.names()) - set(ours.names()) == POOLER
    for name in ours.names():
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))
    again = transformers.BertModel.from_pretrained(
        tmp_path / "out", add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    tokens = tokens_of((1, 20))
    np.testing.assert_allclose(
        reference(again, tokens), reference(model, tokens), atol=1e-5, rtol=0
    )
    assert load(tmp_path / "out").model == lm.model


def test_transformers_says_nothing_of_a_missing_pooler(bert, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        assert main(["export", f"--workdir={bert[0]}", str(tmp_path / "out")]) == DONE
        assert told == []
        transformers.BertModel.from_pretrained(tmp_path / "out", local_files_only=True)
        assert "pooler" in "".join(told)  # it is heard where it is not kept silent
    finally:
        logger.removeHandler(handler)
    assert "hidden states differ by at most" in capsys.readouterr().out


def test_the_proof_holds_hidden_states_and_names_what_is_unused(bert):
    found = open_pretrained(bert[0])
    proof = parity(found, found.params(), found.model)
    assert proof["ok"]
    assert proof["logits"] is None
    assert proof["hidden_states"]["max_abs_difference"] < 1e-4
    assert set(proof["unused"]) == POOLER


@pytest.mark.parametrize(("act", "mlp"), [("gelu_new", "gelu"), ("gelu", "gelu_exact")])
def test_both_forms_of_gelu_are_told_apart_both_ways(bert, act, mlp):
    fields = json.loads((bert[0] / "config.json").read_text())
    _, config = read_config({**fields, "hidden_act": act}, "x")
    assert config.mlp == mlp
    family, written = write_config(resolve(config))
    assert family == "bert"
    assert read_config(written, "y") == ("bert", config)


TEXTS = ["abc", "a b c d", "", "hhh ggg fa b a b", "aa", "[SEP] ab"]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_embeddings_are_those_of_transformers_one_text_at_a_time(bert, pooling):
    folder, model = bert
    lm = load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        hidden = reference(model, np.asarray([ids]))[0]
        vectors = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}
        expected.append(vectors[pooling])
    expected = np.stack(expected)
    got = lm.embed(TEXTS, pooling=pooling)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    got = lm.embed(TEXTS, pooling=f"{pooling}_unit")
    np.testing.assert_allclose(got, unit, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(lm.embed(TEXTS[0]), lm.embed(TEXTS[:1]))


def test_many_rows_of_all_lengths_come_back_in_their_order(bert, monkeypatch):
    monkeypatch.setattr("lmx.generate.embedding.MOST_TOKENS", 64)
    lm = load(bert[0])
    rows = [tokens_of(n, seed=n).tolist() for n in (24, 1, 17, 3, 24, 9, 16, 2)]
    alone = [embed(lm.model, lm.params, [row])[0] for row in rows]
    np.testing.assert_allclose(
        embed(lm.model, lm.params, rows), np.stack(alone), atol=1e-5
    )


@pytest.mark.parametrize(
    ("mode", "names", "pooling"),
    [
        ("mean_tokens", ("Transformer", "Pooling", "Normalize"), "mean_unit"),
        ("cls_token", ("Transformer", "Pooling"), "first"),
        ("lasttoken", ("Transformer", "Pooling"), "last"),
    ],
)
def test_its_own_files_say_how_a_model_pools(tmp_path, mode, names, pooling):
    modules(tmp_path, mode=mode, names=names)
    assert read_pooling(tmp_path) == {"pooling": pooling}


@pytest.mark.parametrize(
    ("mode", "names", "told"),
    [
        ("max_tokens", ("Transformer", "Pooling"), "max_tokens"),
        ("mean_tokens", ("Transformer", "Pooling", "Dense"), "Dense"),
        ("mean_tokens", ("Transformer",), "Transformer"),
        ("other", ("Transformer", "Pooling"), "other"),
    ],
)
def test_pooling_that_cannot_be_expressed_is_refused(tmp_path, mode, names, told):
    modules(tmp_path, mode=mode, names=names)
    with pytest.raises(UserError, match=told):
        read_pooling(tmp_path)


def test_an_encoder_refuses_to_write(bert):
    lm = load(bert[0])
    for what in (
        lambda: lm.generate("a"),
        lambda: lm.chat([{"role": "user", "content": "a"}]),
        lambda: lm.logprobs("a b"),
        lambda: NextToken(lm.model, ObjectiveConfig()),
    ):
        with pytest.raises(UserError, match=r"bidirectional.*lmx embed"):
            what()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_fields_that_an_encoder_cannot_express_are_refused(
    bert, tmp_path, field, value
):
    config = json.loads((bert[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError, match=field):
        open_pretrained(tmp_path)


def test_a_text_longer_than_the_context_is_refused_with_its_number(bert):
    with pytest.raises(UserError, match=r"text 2 has 42 tokens.*1 to 24"):
        load(bert[0]).embed(["a", "a " * 40])


def test_the_command_prints_and_writes_what_the_api_gives(bert, tmp_path, capsys):
    work, vectors = tmp_path / "w", tmp_path / "x.npy"
    modules(bert[0])
    try:
        assert main(["import", str(bert[0]), f"--workdir={work}"]) == DONE
    finally:
        (bert[0] / "modules.json").unlink()
    told = capsys.readouterr().out
    assert "unused:  pooler.dense.bias, pooler.dense.weight: BERT" in told
    assert "lmx embed" in told
    expected = load(work).embed(["a b", "c"], pooling="mean")
    assert main(["embed", f"--workdir={work}", "a b", "c"]) == DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["a b", "c"]
    np.testing.assert_allclose(
        [line["embedding"] for line in lines], expected, rtol=1e-5
    )
    (tmp_path / "texts").write_text("a b\nc\n")
    argv = ["embed", f"--workdir={work}", f"--file={tmp_path}/texts", "--similarity"]
    assert main([*argv, f"--output={vectors}"]) == DONE
    np.testing.assert_array_equal(np.load(vectors), expected)
    assert capsys.readouterr().out.count("1.000") == 2
    assert main(["embed", f"--workdir={work}"]) == USAGE


def test_each_line_of_a_file_has_a_vector_blank_ones_too(bert, tmp_path, capsys):
    file, vectors = tmp_path / "texts", tmp_path / "x.npy"
    file.write_text("a b\n\nc\n")
    argv = ["embed", f"--workdir={bert[0]}", f"--file={file}"]
    assert main([*argv, f"--output={vectors}"]) == DONE
    np.testing.assert_array_equal(
        np.load(vectors), load(bert[0]).embed(["a b", "", "c"])
    )
    file.write_text(" \n\n")
    assert main(argv) == DATA
    assert "holds no text" in capsys.readouterr().err


def test_a_folder_that_is_missing_is_named_before_any_work(tmp_path, capsys):
    argv = ["embed", f"--workdir={tmp_path}/none", "a", f"--output={tmp_path}/b/x.npy"]
    assert main(argv) == USAGE
    assert f"there is no folder {tmp_path}/b" in capsys.readouterr().err
