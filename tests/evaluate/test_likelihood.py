"""Packed likelihoods are those of each text alone, whatever stands beside it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.evaluate import likelihood
from lmx.evaluate.likelihood import likelihoods
from lmx.evaluate.pairs import Scored, encode_pairs, rolling
from lmx.generate.decode import Generator
from lmx.inputs.tokenizers import train_tokenizer
from lmx.models.decoder import Decoder, head_logits
from lmx.models.sizes import resolve

VOCABULARY, CONTEXT = 61, 96


@pytest.fixture(scope="module", params=["causal", "prefix"])
def model(request):
    config = resolve(
        ModelConfig(
            attention=request.param,
            width=32,
            num_layers=2,
            num_heads=2,
            vocab_size=VOCABULARY,
            context_length=CONTEXT,
            compute_dtype="float32",
        )
    )
    boxed = Decoder(config).init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 3 * x, nn.meta.unbox(boxed["params"]))
    return config, params, Generator(config, params, eos_ids=())


@pytest.fixture(scope="module")
def alone(model):
    """Returns log p of the scored ids of one text by itself, and if they are greedy."""
    config, params, _ = model

    @jax.jit
    def log_probabilities(tokens, prompt):
        prefix = None
        if config.attention == "prefix":
            prefix = (jnp.arange(CONTEXT) < prompt)[None]
        hidden = Decoder(config).apply({"params": params}, tokens[None], prefix=prefix)
        return jax.nn.log_softmax(head_logits(config, params, hidden[0]))

    def score(request):
        ids = request.ids[-(CONTEXT + 1) :]
        padded = np.zeros(CONTEXT, np.int32)  # what comes later changes nothing
        padded[: len(ids) - 1] = ids[:-1]
        prompt = max(0, request.prompt - (len(request.ids) - len(ids)))
        log_p = np.asarray(log_probabilities(padded, prompt))
        targets = min(request.targets, len(ids) - 1)
        last = range(len(ids) - 1 - targets, len(ids) - 1)
        nats = sum(log_p[i, ids[i + 1]] for i in last)
        return nats, all(log_p[i].argmax() == ids[i + 1] for i in last)

    return score


@pytest.mark.parametrize("row", [64])
def test_packing_changes_no_likelihood(model, alone, monkeypatch, row):
    monkeypatch.setattr(likelihood, "SHORTEST_ROW", row)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 128)
    drawn = np.random.default_rng(0)
    requests = []
    for _ in range(30):
        size = int(drawn.integers(2, 140))
        ids = drawn.integers(0, VOCABULARY, size).tolist()
        targets = int(drawn.integers(1, size))
        requests.append(Scored(ids, targets, size - targets))
        # Another choice after the same context.
        requests.append(Scored([*ids[:-1], (ids[-1] + 1) % VOCABULARY], 1, size - 1))
    told = []
    found = likelihoods(model[2], requests, watch=lambda *each: told.append(each))
    for request, score in zip(requests, found, strict=True):
        nats, greedy = alone(request)
        assert score.nats == pytest.approx(nats, abs=2e-3)
        assert score.greedy == greedy
        assert score.cut == max(0, len(request.ids) - 1 - CONTEXT)
    assert told[-1][0] == told[-1][1]


def test_greedy_is_what_decoding_writes(model):
    from lmx.generate.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=0, max_new_tokens=5)
    prompt = [3, 1, 4, 1, 5]
    written = model[2].generate([prompt], sampling)[0]
    (score,) = likelihoods(model[2], [Scored([*prompt, *written.tokens], 5, 5)])
    assert score.greedy
    assert score.nats == pytest.approx(sum(written.logprobs), abs=1e-3)


def test_the_boundary_is_that_of_the_harness():
    """The rule of lm-evaluation-harness, `TemplateLM._encode_pair`, in its words."""
    tokenizer = train_tokenizer("bpe", ["the cat sat on the mat " * 9], 300)
    for context, continuation in [
        ("the cat", " sat"),
        ("the cat ", "sat"),
        ("the c", "at sat"),
        ("", "the"),
        ("\n", "the"),
    ]:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            moved = context[-spaces:] + continuation
            bare = context[:-spaces]
        else:
            moved, bare = continuation, context
        whole, before = tokenizer.encode(bare + moved), tokenizer.encode(bare)
        (found,) = encode_pairs(tokenizer, [(context, continuation)])
        after = whole[len(before) :]
        assert found.ids == [tokenizer.bos_id, *before, *after]
        assert found.targets == len(after)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 12])
def test_rolling_windows_score_each_token_once_with_all_they_can_see(length):
    ids = list(range(10, 10 + length))
    windows = rolling(ids, start=1, size=4)
    scored = [token for w in windows for token in w.ids[len(w.ids) - w.targets :]]
    assert scored == ids
    assert all(len(window.ids) <= 5 for window in windows)
    assert all(len(w.ids) == 5 for w in windows[1:])
    whole = [1, *ids]
    for window in windows:
        at = whole.index(window.ids[0])
        assert whole[at : at + len(window.ids)] == window.ids
