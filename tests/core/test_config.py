"""A config is what its author meant, or an error that says what to write instead."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmx
from lmx.core import config as configs
from lmx.core.errors import UserError
from lmx.core.schema import ExperimentConfig

KEYS = [key for key, _, _ in configs.fields()]


def write_experiment(tmp_path, body):
    path = tmp_path / "experiment.py"
    lines = "\n    ".join(body.strip().splitlines())
    path.write_text(
        "import lmx\n\n\ndef get_config(arg=''):\n    config = lmx.default_config()\n"
        f"    {lines}\n    return lmx.variant(config, arg)\n"
    )
    return str(path)


def test_defaults_freeze_to_the_defaults_of_the_schema():
    assert configs.freeze(lmx.default_config()) == ExperimentConfig()


def test_every_key_is_documented_and_there_are_at_most_136():
    documented = [f.metadata["doc"] for _, _, f in configs.fields()]
    assert len(KEYS) <= 136
    assert all(len(doc) > 10 for doc in documented)


def test_every_default_can_be_spelled_on_the_command_line():
    flat = configs.flatten(ExperimentConfig())
    config = lmx.default_config()
    for key, value in flat.items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        configs.override(config, key, text)
    assert configs.freeze(config) == ExperimentConfig()


def test_json_round_trip_keeps_everything():
    config = lmx.default_config()
    config.model.size = "10m"
    config.evals.prompts = ("def ", "é\n")
    frozen = configs.freeze(config)
    assert configs.from_json(configs.to_json(frozen)) == frozen


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "1_000", 1000),
        ("steps", "1e3", 1000),
        ("optim.learning_rate", "3e-4", 3e-4),
        ("optim.clip_norm", "None", None),
        ("model.pattern", "window,attention", ("window", "attention")),
        ("evals.prompts", "('a, b',)", ("a, b",)),
        ("data.path", "None", "None"),
    ],
)
def test_command_line_values_have_the_type_of_their_key(key, text, value):
    config = lmx.default_config()
    configs.override(config, key, text)
    assert configs.flatten(configs.freeze(config))[key] == value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("steps", "many", "steps='many' must be a whole number"),
        ("steps", "1.5", "steps='1.5' must be a whole number"),
        ("steps", "0", "steps=0 must be at least 1"),
        ("steps", "inf", "steps='inf' must be a whole number"),
        ("optim.learning_rate", "nan", "must be a number"),
        ("optim.learning_rate", "fast", "must be a number"),
        ("optim.learning_rate", "None", "must be a number"),
        ("model.norm", "rmsnrom", "did you mean 'rmsnorm'"),
        ("model.nrom", "rmsnorm", "did you mean 'model.norm'"),
        ("num_layers", "3", "did you mean 'model.num_layers'"),
        ("modle.width", "3", "did you mean 'model.width'"),
        ("data.validation_fraction", "1", "between 0 and 1"),
        ("seed", "-1", "seed=-1 must be at least 0"),
        ("seed", "4294967296", "must be below 2**32"),
        ("evals.final_batches", "0", "must be at least 1"),
        ("evals.temperature", "inf", "must be a number"),
        ("evals.prompts", "('def ')", "must be a list of names"),
        ("evals.prompts", "(1)", "must be a list of names"),
        ("model.window", "8", "is used by no layer"),
        ("optim.accumulate_steps", "3", "does not divide data.batch_size=32"),
    ],
)
def test_a_wrong_override_names_value_and_remedy(key, text, message):
    def frozen_with():
        config = lmx.default_config()
        configs.override(config, key, text)
        return configs.freeze(config)

    with pytest.raises(UserError) as error:
        frozen_with()
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_user_error(text):
    config = lmx.default_config()
    for key in ("steps", "optim.learning_rate", "model.pattern", "model.norm"):
        try:
            configs.override(config, key, text)
            configs.freeze(config)
        except UserError:
            config = lmx.default_config()


def test_an_experiment_that_fails_is_blamed_by_file_and_line(tmp_path):
    path = write_experiment(tmp_path, "config.model.widht = 3")
    with pytest.raises(UserError, match=rf"{path}:6: .*widht"):
        configs.load_experiment(path)
    path = write_experiment(tmp_path, "config.steps = (1")
    with pytest.raises(UserError, match="SyntaxError"):
        configs.load_experiment(path)


def test_a_missing_experiment_names_the_nearest_file(tmp_path):
    path = write_experiment(tmp_path, "config.steps = 3")
    with pytest.raises(UserError, match=r"did you mean '.*experiment.py'"):
        configs.load_experiment(path.replace("experiment.py", "experimnt.py"))


def test_variants_apply_after_the_experiment(tmp_path):
    path = write_experiment(tmp_path, "config.model.width = 512\nconfig.steps = 90")
    sized = configs.freeze(configs.load_experiment(f"{path}:size=10m"))
    assert (sized.model.size, sized.model.width, sized.steps) == ("10m", None, 90)
    smoke = configs.freeze(configs.load_experiment(f"{path}:smoke"))
    assert smoke.steps == configs.SMOKE["steps"]
    with pytest.raises(UserError, match="unknown variant 'smoek'"):
        configs.load_experiment(f"{path}:smoek")


def test_smoke_and_resumable_and_lowest_name_real_keys():
    assert set(configs.SMOKE) <= set(KEYS)
    assert set(configs.LOWEST) <= set(KEYS)
    for prefix in configs.RESUMABLE:
        assert any(key.startswith(prefix) for key in KEYS), prefix


def test_a_config_file_with_an_unknown_key_is_refused():
    values = json.loads(configs.to_json(ExperimentConfig()))
    values["model"]["use_magic"] = True
    with pytest.raises(UserError, match=r"model\.use_magic"):
        configs.freeze(values)


def test_configs_are_read_without_loading_jax():
    code = (
        "import sys; from lmx.run.config_command import main; "
        "main(['show', '--config.model.size=10m']); "
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model.size" in done.stdout
