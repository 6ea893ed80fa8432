"""The Python face does what the command line does, and says what is wrong."""

import jax
import numpy as np
import pytest

import lmx
from lmx.core.errors import CheckpointError, DataError, UserError
from lmx.models.decoder import Decoder, head_logits


@pytest.fixture(scope="module")
def model(finished):
    return lmx.load(finished[0])


def test_logits_are_those_of_the_decoder_for_every_length(model):
    ids = model.tokenizer.encode("def train(config):\n    return 1\n")
    hidden = Decoder(model.model).apply({"params": model.params}, np.array([ids]))
    expected = head_logits(model.model, model.params, hidden)[0]
    found = model.logits(ids)
    assert found.shape == (len(ids), model.model.vocab_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)  # bf16 products
    np.testing.assert_allclose(model.logits(ids[:3]), found[:3], atol=0.05)


def test_scores_of_a_text_after_a_prompt_are_those_of_the_whole(model):
    text, prompt = "    return 1\n", "def train(config):\n"
    ids = [*model.tokenizer.prefix_ids, *model.tokenizer.encode(prompt)]
    first = len(ids)
    ids += model.tokenizer.encode(text)
    logits = model.logits(ids).astype(float)
    total = np.log(np.exp(logits).sum(axis=-1))
    expected = [logits[i - 1, ids[i]] - total[i - 1] for i in range(first, len(ids))]
    found = model.logprobs(text, prompt=prompt)
    np.testing.assert_allclose(found, expected, atol=0.02)  # bf16 products
    assert len(model.logprobs("", prompt=prompt)) == 0
    with pytest.raises(UserError, match=r"prompt_tokens=9 must lie in 0..3"):
        model.logits([1, 2, 3], prompt_tokens=9)


def test_averaged_weights_are_used_where_the_run_kept_them(model, finished):
    from lmx.training.checkpoints import Checkpoints

    with Checkpoints(finished[0] / "checkpoints") as checkpoints:
        ema = checkpoints.restore_params(8, weights="ema")
        raw = checkpoints.restore_params(8, weights="params")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), model.params, ema)
    assert all(jax.tree.leaves(same))
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), model.params, raw)
    assert any(jax.tree.leaves(differs))


def test_generate_and_stream_agree(model):
    text = model.generate("def ", temperature=0, max_new_tokens=12)
    assert text == "".join(model.stream("def ", temperature=0, max_new_tokens=12))
    assert model.generate(["def ", "x"], temperature=0, max_new_tokens=12)[0] == text


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "give a list of 1 to 48"),
        ([[1, 2]], "give a list of 1 to 48"),
        ([1] * 49, "give a list of 1 to 48"),
        ([300], "must lie in 0..299"),
        ([-1], "must lie in 0..299"),
    ],
)
def test_wrong_token_ids_are_refused(model, ids, message):
    with pytest.raises(UserError, match=message):
        model.logits(ids)


def test_an_unknown_sampling_option_names_the_nearest(model):
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        model.generate("x", temprature=1)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        lmx.load(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(run_copy):
    import shutil

    shutil.rmtree(run_copy / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        lmx.load(run_copy)


def test_another_tokenizer_is_refused(run_copy):
    from lmx.inputs.tokenizers import train_tokenizer

    train_tokenizer("byte", ["x"], 300).save(run_copy / "tokenizer")
    with pytest.raises(DataError, match="is not the tokenizer of checkpoint 8"):
        lmx.load(run_copy)


def test_train_returns_the_trained_model(run_copy, finished):
    from .conftest import tiny_config

    model = lmx.train(tiny_config(), run_copy)
    assert (model.step, model.config.steps) == (8, 8)
