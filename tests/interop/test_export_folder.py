"""An export is refused by name, or whole: nothing is left of what failed."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from lmx.core.errors import StorageError, UserError
from lmx.interop.safetensors_file import SINGLE


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


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
def test_what_no_family_has_is_refused_by_name(tmp_path, to, option, value, model_of):
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
def test_what_gguf_cannot_say_is_written_for_transformers(
    tmp_path, changes, said, model_of
):
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
