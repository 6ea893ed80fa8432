"""Safetensors are written whole, read back the same, and hostile files are refused.

The independent reader is the `safetensors` package, where it is installed.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import DataError
from lmx.interop.safetensors_file import (
    INDEX,
    SINGLE,
    Safetensors,
    SafetensorsFile,
    write_safetensors,
)

WRITTEN = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SHAPES = {"a": (3, 4), "b.c": (5,), "empty": (0, 7), "cube": (2, 3, 2), "è": (1,)}
BYTE = st.integers(0, 255)


def values_of(dtype, shapes=SHAPES):
    random = np.random.default_rng(0)
    return {n: random.normal(size=s).astype(dtype) for n, s in shapes.items()}


def write(folder, values, dtype, **options):
    tensors = [(name, v.shape, lambda v=v: v) for name, v in values.items()]
    write_safetensors(folder, tensors, dtype, **options)


def assert_same(found, values):
    assert sorted(found.names()) == sorted(values)
    for name, value in values.items():
        read = found.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value, strict=True)


@pytest.mark.parametrize("shard_bytes", [10**9, 60, 1])
@pytest.mark.parametrize("dtype", WRITTEN, ids=str)
def test_what_is_written_reads_back_the_same(tmp_path, dtype, shard_bytes):
    values = values_of(dtype)
    write(tmp_path, values, dtype, shard_bytes=shard_bytes)
    assert_same(Safetensors(tmp_path), values)


@pytest.mark.parametrize("dtype", WRITTEN, ids=str)
def test_a_scalar_reads_back_as_a_scalar(tmp_path, dtype):
    values = {"scalar": np.asarray(2.5, dtype), "after": np.ones(3, dtype)}
    write(tmp_path, values, dtype)
    assert_same(Safetensors(tmp_path), values)


def test_no_tensors_at_all_read_back(tmp_path):
    write(tmp_path, {}, np.dtype(np.float32))
    assert Safetensors(tmp_path).names() == []


@given(
    sizes=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=8),
    shard_bytes=st.integers(1, 200),
)
def test_no_shard_is_larger_than_asked_and_none_is_lost(
    tmp_path_factory, sizes, shard_bytes
):
    folder = tmp_path_factory.mktemp("shards")
    shapes = {f"t{i}": tuple(size) for i, size in enumerate(sizes)}
    values = values_of(np.float32, shapes)
    write(folder, values, np.dtype(np.float32), shard_bytes=shard_bytes)
    assert_same(Safetensors(folder), values)
    files = list(folder.glob("*.safetensors"))
    assert (folder / INDEX).exists() == (len(files) > 1)
    for file in files:
        held = [values[name].nbytes for name in SafetensorsFile(file).entries]
        assert sum(held) <= shard_bytes or sum(n > 0 for n in held) == 1


@pytest.mark.parametrize("shard_bytes", [10**9, 60])
@pytest.mark.parametrize("dtype", WRITTEN, ids=str)
def test_the_safetensors_package_reads_the_same(tmp_path, dtype, shard_bytes):
    reference = pytest.importorskip("safetensors")
    values = values_of(dtype)
    write(tmp_path, values, dtype, shard_bytes=shard_bytes)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        content = file.read_bytes()
        for name, facts in reference.deserialize(content):
            raw = np.frombuffer(bytes(facts["data"]), dtype)
            found[name] = raw.reshape(facts["shape"])
    assert sorted(found) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    if (tmp_path / INDEX).exists():
        index = json.loads((tmp_path / INDEX).read_text(encoding="utf8"))
        total = sum(value.nbytes for value in values.values())
        assert index["metadata"]["total_size"] == total
        assert sorted(index["weight_map"]) == sorted(values)


def test_what_the_safetensors_package_writes_reads_the_same(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(0)
    dtypes = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
    values = {code: (9 * random.random((3, 5))).astype(code) for code in dtypes}
    values |= {"scalar": np.asarray(1.5, "f4"), "none": np.zeros((0, 3), "f4")}
    reference.save_file(values, tmp_path / SINGLE, metadata={"format": "np"})
    assert_same(Safetensors(tmp_path), values)


def test_a_tensor_is_mapped_and_cannot_be_changed(tmp_path):
    write(tmp_path, values_of(np.float32), np.dtype(np.float32))
    value = Safetensors(tmp_path).read("a")
    assert isinstance(value, np.memmap)
    assert not value.flags.writeable


@contextlib.contextmanager
def little(seconds=5.0, megabytes=32):
    """Fails if the block takes much work (of a processor) or much memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
    finally:
        taken = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < seconds
    assert peak < megabytes * 2**20


def read_all(path):
    file = SafetensorsFile(path)
    return [file.read(name).copy() for name in file.entries]


def refused(path, reason=""):
    """Opens `path` and reads all of it; checks that this ends in the right error."""
    with little(), pytest.raises(DataError, match=reason) as refusal:
        read_all(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def hostile(folder, header, data=b"", length=None):
    """Writes a file of this header (JSON, or text, or bytes) and returns its path."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    length = len(raw) if length is None else length
    path = folder / SINGLE
    path.write_bytes(length.to_bytes(8, "little") + raw + data)
    return path


def described(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_every_part_of_a_file_is_refused(tmp_path):
    write(tmp_path, values_of(np.float32), np.dtype(np.float32))
    whole = (tmp_path / SINGLE).read_bytes()
    path = tmp_path / "part.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole safetensors file") as refusal:
            SafetensorsFile(path)
        assert str(path) in str(refusal.value)
    path.write_bytes(whole + b"\0")
    refused(path, "tensors end at byte")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 2**31, 100])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    refused(hostile(tmp_path, {}, length=length), f"header of {length} bytes")


def test_a_header_above_the_format_s_limit_is_not_read(tmp_path):
    path = tmp_path / SINGLE
    with open(path, "wb") as file:
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(2 * 10**8)  # a hole: no disk is used
    refused(path, "header of 100000001 bytes")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\xff\xfe{}", "not JSON"),
        (b'{"\xc3": 1}', "not JSON"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("[]", "not a table"),
        ('"a"', "not a table"),
        ("null", "not a table"),
        ("1" * 10_000, "not JSON"),
    ],
)
def test_a_header_that_is_no_table_is_refused(tmp_path, header, reason):
    refused(hostile(tmp_path, header), reason)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"a": described(), "b": described()}, "'[ab]' overlaps"),
        ({"a": described(), "b": described(4, 12)}, "'b' overlaps"),
        ({"a": described(4, 12)}, "'a' overlaps another tensor or leaves a gap"),
        ({"a": described(), "b": described(12, 20)}, "'b' .*leaves a gap"),
        ({"a": described(), "b": described(2, 2, (0,))}, "'b' overlaps"),
        ({"a": described(0, 8)}, "end at byte"),
        ({"a": described(8, 0)}, "'a' of shape"),
        ({"a": described(-8, 0)}, "'a' of shape"),
        ({"a": described(shape=(-2,))}, "'a' of shape"),
        ({"a": described(shape=(-2, -1))}, "'a' of shape"),
        ({"a": described(shape=(2.0,))}, "'a' of shape"),
        ({"a": described(shape=(True, 2))}, "'a' of shape"),
        ({"a": described(0, 8.0)}, "'a' of shape"),
        ({"a": described(False, 8)}, "'a' of shape"),
        ({"a": described(0, 4, (True,))}, "'a' of shape"),
        ({"a": described(shape=("2",))}, "'a' of shape"),
        ({"a": described(shape=(float("nan"),))}, "'a' of shape"),
        ({"a": described(shape=(2**60,))}, "'a' of shape"),
        ({"a": described(0, 2**62, (2**60,))}, "which do not fit"),
        ({"a": described(shape=(2**60,) * 4)}, "'a' of shape"),
        ({"a": described(0, 8, (2**62, 4, 2))}, "'a' of shape"),
        ({"a": described(dtype="F31")}, "'a' is not described"),
        ({"a": described(dtype=["F32"])}, "'a' is not described"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "'a' is not described"),
        ({"a": {**described(), "data_offsets": [0]}}, "'a' is not described"),
        ({"a": {**described(), "data_offsets": [0, 4, 8]}}, "'a' is not described"),
        ({"a": {**described(), "shape": None}}, "'a' is not described"),
        ({"a": {**described(), "shape": 2}}, "'a' is not described"),
        ({"a": None}, "'a' is not described"),
        ({"a": [1, 2]}, "'a' is not described"),
        ({"a": "x" * 100_000}, "'a' is not described"),
    ],
)
def test_a_tensor_that_cannot_be_so_is_refused(tmp_path, table, reason):
    size = 4 if reason == "end at byte" else 8
    refused(hostile(tmp_path, table, bytes(size)), reason)


@pytest.mark.parametrize(
    "shape", [(0, 2**60, 2**60), (0, 2**64), (1,) * 100, (0,) * 100]
)
def test_a_shape_that_no_array_can_have_is_refused(tmp_path, shape):
    size = 0 if 0 in shape else 4
    refused(hostile(tmp_path, {"a": described(0, size, shape)}, bytes(size)), "'a'")


@pytest.mark.parametrize("where", ["tensor", "field", "metadata"])
def test_a_name_that_is_there_twice_is_refused(tmp_path, where):
    text = json.dumps(described())
    header = {
        "tensor": f'{{"a": {text}, "a": {text}}}',
        "field": f'{{"a": {text[:-1]}, "shape": [2]}}}}',
        "metadata": f'{{"__metadata__": {{}}, "__metadata__": {{}}, "a": {text}}}',
    }[where]
    refused(hostile(tmp_path, header, bytes(8)), "in its header twice")


def test_many_names_with_one_twice_are_refused_at_once(tmp_path):
    names = [f'"{i}": 0' for i in range(20_000)]
    header = "{" + ", ".join([*names, names[-1]]) + "}"
    refused(hostile(tmp_path, header), "'19999' is in its header twice")


def test_a_shape_of_very_many_axes_is_refused_at_once(tmp_path):
    header = {"a": described(shape=(9,) * 300_000)}
    refused(hostile(tmp_path, header, bytes(8)), "'a'")


@given(data=st.data())
def test_a_changed_header_is_refused_or_can_be_read(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    shapes = {"a": (3,), "b": (0,), "c": (2, 2)}
    write(folder, values_of(np.float32, shapes), np.dtype(np.float32))
    path = folder / SINGLE
    raw = bytearray(path.read_bytes())
    header = int.from_bytes(raw[:8], "little")
    at = data.draw(st.integers(0, 7 + header))
    raw[at] = data.draw(st.sampled_from(b'0123456789-.,:"[]{}eEnull\0\xff ') | BYTE)
    path.write_bytes(raw)
    with contextlib.suppress(DataError):
        read_all(path)
    path.unlink()


@pytest.fixture
def sharded(tmp_path):
    """A folder of shards, and its index."""
    folder = tmp_path / "model"
    folder.mkdir()
    values = values_of(np.float32)
    write(folder, values, np.dtype(np.float32), shard_bytes=1)
    return folder, json.loads((folder / INDEX).read_text(encoding="utf8"))


def test_a_missing_shard_is_named(sharded):
    folder, index = sharded
    shard = folder / index["weight_map"]["cube"]
    shard.unlink()
    with pytest.raises(DataError, match=str(shard)):
        Safetensors(folder)


def test_a_shard_that_lacks_a_tensor_is_named(sharded):
    folder, index = sharded
    index["weight_map"]["more"] = shard = index["weight_map"]["cube"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf8")
    with pytest.raises(DataError, match=f"{shard} has no tensor 'more'") as refusal:
        Safetensors(folder)
    assert str(folder / INDEX) in str(refusal.value)


@pytest.mark.parametrize("way", ["../secret.safetensors", "absolute", "..", "", "."])
def test_an_index_does_not_lead_out_of_its_folder(sharded, way):
    folder, index = sharded
    secret = folder.parent / "secret.safetensors"
    write(folder.parent, values_of(np.float32, {"s": (2,)}), np.dtype(np.float32))
    (folder.parent / SINGLE).rename(secret)
    index["weight_map"]["s"] = str(secret) if way == "absolute" else way
    (folder / INDEX).write_text(json.dumps(index), encoding="utf8")
    with pytest.raises(DataError, match=str(folder)):
        Safetensors(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": "%s"}}' % ("x" * 5000),
        '{"weight_map": {"a": "x\\u0000.safetensors"}}',
        '{"weight_map": {"a": "\\ud800.safetensors"}}',
        "[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, content):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / INDEX).write_bytes(raw)
    with little(), pytest.raises(DataError, match=str(tmp_path)):
        Safetensors(tmp_path)


def test_a_damaged_shard_is_refused(sharded):
    folder, index = sharded
    shard = folder / index["weight_map"]["a"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=str(shard)):
        Safetensors(folder)


def test_a_pickle_is_named_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle"):
        Safetensors(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        Safetensors(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        Safetensors(tmp_path / "nowhere")
