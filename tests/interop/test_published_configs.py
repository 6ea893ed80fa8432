"""The config.json of published models, whole: every field of them is understood.

The reference is the number of parameters that each is published with.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmx.core.errors import UserError
from lmx.interop.hf_config import read_config
from lmx.models.counting import parameter_count
from lmx.models.sizes import resolve

PUBLISHED = json.loads(
    (Path(__file__).parent / "published_configs.json").read_text("utf8")
)


def read(name: str, **changed):
    return read_config({**PUBLISHED[name]["config"], **changed}, name)[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_describes_its_model(name):
    assert parameter_count(resolve(read(name))) == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Qwen2.5-Math-1.5B", "use_mrope", True),
        ("SmolLM2-135M-Instruct", "rope_interleaved", True),
        ("Phi-4-mini-instruct", "interpolate_factor", 2),
        ("Qwen3-Coder-30B-A3B-Instruct", "use_qk_norm", False),
        ("Qwen3-Coder-30B-A3B-Instruct", "shared_expert_intermediate_size", 8),
        ("gemma-2-2b", "sliding_window_size", 8),
        ("gemma-3-1b-it", "attn_logit_softcapping", 30.0),
    ],
)
def test_a_field_with_an_effect_that_lmx_lacks_is_refused(name, field, value):
    with pytest.raises(UserError, match=field):
        read(name, **{field: value})


def test_attention_in_chunks_is_read_as_far_as_it_is_the_usual_one():
    model = read("Qwen2.5-7B-Instruct-1M")
    assert model.context_length == 262_144 - 8_192
    assert read("Qwen2.5-7B-Instruct-1M", dual_chunk_attention_config=None) == (
        type(model)(**{**vars(model), "context_length": 1_010_000})
    )
