"""Adapters of the library peft: the same logits there and here, in both directions.

The reference is peft 0.21 over transformers, on models of a few thousand parameters.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import lmx
from lmx.core.errors import DataError, UserError
from lmx.core.schema import AdapterConfig
from lmx.finetune.adapter import Adapter, Change

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
# Of peft, which asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)
IDS = [3, 14, 15, 9, 26, 5, 35, 8]
SHAPES = {
    "llama": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {
        "vocab_size": 300,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "phi3": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of tiny models, by family."""
    from lmx.inputs.tokenizers import train_tokenizer

    tokenizer = train_tokenizer("byte", ["text"], 300)
    found = {}
    for family, shape in SHAPES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **shape)
        model = transformers.AutoModelForCausalLM.from_config(config)
        found[family] = tmp_path_factory.mktemp(family)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
        model.save_pretrained(found[family])
        (found[family] / "tokenizer.json").write_text(tokenizer.content)
    return found


def base_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def save_by_peft(folder, out, **options):
    """Returns the logits of an adapter with random weights, saved by peft."""
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **options})
    model = peft.get_peft_model(base_of(folder), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p += 0.1 * torch.rand_like(p)
    model.save_pretrained(out)
    return logits(model)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": "all-linear", "lora_alpha": 6}),
        ("llama", {"target_modules": ["q_proj", "o_proj"], "use_dora": True}),
        ("llama", {"target_modules": ["down_proj"], "use_rslora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    ],
)
def test_an_adapter_of_peft_has_its_logits_here(published, tmp_path, family, options):
    expected = save_by_peft(published[family], tmp_path / "adapter", **options)
    model = lmx.load(tmp_path / "adapter")
    np.testing.assert_allclose(model.logits(IDS), expected, atol=1e-4)
    plain = lmx.load(published[family])
    assert np.abs(plain.logits(IDS) - expected).max() > 0.05
    assert model.change.adapter.config.rank == 4


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_an_adapter_of_ours_has_its_logits_in_peft(published, tmp_path, method):
    import peft

    base = lmx.load(published["llama"])
    config = AdapterConfig(method=method, rank=3, alpha=5.0)
    adapter = Adapter(config, base.model)
    params = adapter.params(jax.random.key(0), base.params)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.random(x.shape, np.float32), params)
    base.change = Change(adapter, params)
    named = dataclasses.replace(base.config.model, init_from=str(published["llama"]))
    base.config = dataclasses.replace(base.config, model=named)
    base.params = base.change.of(base.params)
    folder = base.save(tmp_path / "adapter", to="peft")
    model = peft.PeftModel.from_pretrained(base_of(published["llama"]), folder)
    np.testing.assert_allclose(logits(model), base.logits(IDS), atol=1e-4)
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # And comes back the same.
    again = lmx.load(folder)
    np.testing.assert_allclose(again.logits(IDS), base.logits(IDS), atol=1e-6)


@pytest.fixture(scope="module")
def saved(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_by_peft(published["llama"], folder, target_modules="all-linear")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"r": 8}, "rank 8"),
        ({"r": "8"}, "r='8' must be a number"),
        ({"use_dora": True}, "magnitude"),
        ({"base_model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
    ],
)
def test_what_an_adapter_cannot_mean_is_refused_by_name(
    saved, tmp_path, change, message
):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError) as error:
        lmx.load(folder)
    assert message in str(error.value)


def test_an_adapter_for_another_base_is_refused_by_the_name_of_a_module(
    published, saved
):
    with pytest.raises(DataError, match=r"_proj, which its base .*gpt2.* has not"):
        lmx.load(saved, base=published["gpt2"])


def test_an_adapter_of_some_layers_is_refused(published, tmp_path):
    options = {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}
    save_by_peft(published["llama"], tmp_path / "adapter", **options)
    file = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "layers_to_transform": None}))
    with pytest.raises(UserError, match="2 of the 3 layers"):
        lmx.load(tmp_path / "adapter")


def test_an_adapter_of_peft_is_imported_as_a_run_on_its_base(saved, tmp_path):
    from lmx.run.import_command import import_model

    import_model(str(saved), tmp_path / "run")
    there, here = lmx.load(saved), lmx.load(tmp_path / "run")
    assert np.array_equal(here.logits(IDS), there.logits(IDS))
    assert here.change is not None
