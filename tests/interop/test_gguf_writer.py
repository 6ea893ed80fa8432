"""GGUF files, written: as the `gguf` package has them, and whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core import errors
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_writer import write_gguf


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_gguf_package_reads_what_is_written(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    from gguf import GGUFReader, quants

    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(7, 96)).astype(np.float32),
        "zero": np.zeros((2, 64), np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
        "odd": rng.normal(size=(3, 33)).astype(np.float32),
        "deep": rng.normal(size=(2, 3, 4, 32)).astype(np.float32),
    }
    path = tmp_path / "x.gguf"
    metadata = {"general.architecture": "llama", "llama.block_count": 2, "r": 0.5}
    write_gguf(path, metadata, as_tensors(arrays), kind)
    reader = GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(arrays)
    assert reader.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["r"].types == [gguf.GGUFValueType.FLOAT32]
    ours = GGUFFile(path)
    for tensor in reader.tensors:
        array = arrays[tensor.name]
        stays = array.ndim == 1 or (kind == "Q8_0" and array.shape[-1] % 32)
        stored = "F32" if stays else kind
        assert tensor.tensor_type.name == stored
        flat = array.reshape(-1, array.shape[-1])
        expected = quants.quantize(flat, gguf.GGMLQuantizationType[stored])
        np.testing.assert_array_equal(
            np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1),
            np.ascontiguousarray(expected).view(np.uint8).reshape(-1),
        )
        decoded = quants.dequantize(expected, gguf.GGMLQuantizationType[stored])
        np.testing.assert_array_equal(
            ours.read(tensor.name), decoded.reshape(array.shape)
        )


def as_tensors(arrays):
    return [(name, a.shape, lambda a=a: a) for name, a in arrays.items()]


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(-9, 9), min_size=1), min_size=1, max_size=3),
)


@given(st.dictionaries(st.text("abc.", min_size=1), VALUES, max_size=5))
def test_metadata_round_trips(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    write_gguf(path, metadata, [], "F32")

    def plain(value):
        if isinstance(value, list):
            return [plain(v) for v in value]
        return value.tolist() if isinstance(value, np.ndarray) else value

    found = {name: plain(v) for name, v in GGUFFile(path).metadata.items()}
    assert found == {"general.file_type": 0, **metadata}


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_any_alignment_round_trips(tmp_path, alignment):
    arrays = {str(n): np.full((n, 3), n, np.float32) for n in range(1, 6)}
    path = tmp_path / "x.gguf"
    write_gguf(path, {"general.alignment": alignment}, as_tensors(arrays), "F16")
    file = GGUFFile(path)
    for name, array in arrays.items():
        assert file.tensors[name].offset % alignment == 0
        np.testing.assert_array_equal(file.read(name), array)


def broken():
    raise RuntimeError("no weights")


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([("v", (2, 2), lambda: np.ones((2, 2))), ("w", (2,), broken)], RuntimeError),
        ([("w", (2, 2), lambda: np.ones((2, 3)))], errors.DataError),
        ([("w", (2, 2), lambda: np.full((2, 2), 1e6))], errors.DataError),
        ([("w", (2, 2), lambda: np.full((2, 2), np.nan))], errors.DataError),
        ([("w", (1,), broken), ("w", (1,), broken)], errors.DataError),
        ([("w", (), broken)], errors.DataError),
        ([("w" * 64, (1,), broken)], errors.DataError),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, tensors, error):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_gguf(path, {}, tensors, "F16")
    assert os.listdir(tmp_path) == ["x.gguf"]
    assert path.read_bytes() == b"old"


def test_what_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "x.gguf"
    for value in ({}, None, [1, "a"], 2**64, [[[[[[1]]]]]]):
        with pytest.raises(errors.DataError, match="'a'"):
            write_gguf(path, {"a": value}, [], "F32")
    with pytest.raises(errors.UserError, match="unknown GGUF kind 'Q4_K'"):
        write_gguf(path, {}, [], "Q4_K")
    with pytest.raises(errors.StorageError, match="cannot write"):
        write_gguf(tmp_path / "none" / "x.gguf", {}, [], "F32")
    assert os.listdir(tmp_path) == []


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self):
            if self.base is None:
                alive.remove(1)

    def make():
        assert not alive
        alive.append(1)
        return Counted((4, 4), np.float32)

    write_gguf(tmp_path / "x.gguf", {}, [(n, (4, 4), make) for n in "abc"], "F32")
