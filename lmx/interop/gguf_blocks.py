"""The blocks of GGUF tensors: how each kind of tensor is stored, and its arithmetic.

Decoders turn the bytes of whole blocks into float32, encoders do the opposite. Nothing
here knows of files, headers or names, and a value that a kind cannot hold is for the
caller to refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Decode = Callable[[np.ndarray], np.ndarray]


class Kind(NamedTuple):
    """How a tensor is stored: `elements` values in each block of `size` bytes.

    `decode` turns uint8 blocks [n, size] into float32 [n, elements], or is None.
    """

    number: int
    elements: int
    size: int
    decode: Decode | None = None


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """Returns the float16 at byte `start` of each block as float32 [n, 1]."""
    raw = np.ascontiguousarray(blocks[:, start : start + 2])
    return raw.view("<f2").astype(np.float32)


def _decode_f32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4")


def _decode_f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def _decode_bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Returns the low nibbles of each row of bytes, then the high ones, as float32."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.float32)


def _decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _fifth_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """Returns 16 where a bit of the four bytes at `start` is set, [n, 32]."""
    raw = np.ascontiguousarray(blocks[:, start : start + 4])
    return np.unpackbits(raw, axis=1, bitorder="little").astype(np.float32) * 16


def _decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 6:]) + _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (values - 16)


def _decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 8:]) + _fifth_bits(blocks, 4)
    return _half(blocks, 0) * values + _half(blocks, 2)


# What the 16 codes of the IQ4 kinds stand for: finer near zero.
IQ4_VALUES = np.array(
    [
        *(-127, -104, -83, -65, -49, -35, -22, -10),
        *(1, 13, 25, 38, 53, 69, 89, 113),
    ],
    np.float32,
)


def _decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * IQ4_VALUES[_nibbles(blocks[:, 2:]).astype(np.intp)]


def _scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale and the minimum of each of 8 groups of 32, [n, 8, 1].

    Both are of six bits, in 12 bytes after the two float16 that they multiply.
    """
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    # Groups 0-3 have six bits of `low` and `mid`; groups 4-7 have four of `high`
    # and, on top, the two that the others left.
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    scale, minimum = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return scale[..., None], minimum[..., None]


def _decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    scale, minimum = _scales_and_minima(blocks)
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scale * values - minimum).reshape(-1, 256)


def _decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """Decodes Q4_K with a fifth bit of each value: group i has bit i of 32 bytes."""
    scale, minimum = _scales_and_minima(blocks)
    values = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    values += _planes(blocks[:, None, 16:48], 8, 1) * 16
    return (scale * values - minimum).reshape(-1, 256)


def _planes(raw: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Returns the `count` fields of `bits` bits of bytes [..., 1, k], [..., count, k].

    The lowest is the first.
    """
    shifts = np.arange(count, dtype=np.uint8)[:, None] * np.uint8(bits)
    return ((raw >> shifts) & np.uint8((1 << bits) - 1)).astype(np.float32)


def _decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """Decodes 16 groups of 16, each with a 4-bit scale and a 4-bit minimum."""
    scale = _half(blocks, 80) * (blocks[:, :16] & 15)
    minimum = _half(blocks, 82) * (blocks[:, :16] >> 4)
    values = _planes(blocks[:, 16:80].reshape(-1, 2, 1, 32), 4, 2).reshape(-1, 16, 16)
    return (scale[..., None] * values - minimum[..., None]).reshape(-1, 256)


def _decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """Decodes 16 groups of 16 with 6-bit scales; a bit that is not set takes 4 off."""
    values = _planes(blocks[:, 32:96].reshape(-1, 2, 1, 32), 4, 2).reshape(-1, 16, 16)
    set_ = _planes(blocks[:, None, :32], 8, 1).reshape(-1, 16, 16)
    low = _planes(blocks[:, None, 96:104], 2, 4).reshape(-1, 16)
    high = _planes(blocks[:, None, 104:108], 4, 2).reshape(-1, 16)
    scale = _half(blocks, 108) * (low + 16 * high - 32)
    return (scale[..., None] * (values - 4 * (1 - set_))).reshape(-1, 256)


def _decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """Decodes 8 groups of 32 codes, each with a 6-bit scale."""
    low = blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    high = blocks[:, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    scales = low.reshape(-1, 8) + 16.0 * high.reshape(-1, 8) - 32
    scale = (_half(blocks, 0) * scales).astype(np.float32)
    codes = _nibbles(blocks[:, 8:].reshape(-1, 8, 16)).astype(np.intp)
    return (scale[..., None] * IQ4_VALUES[codes]).reshape(-1, 256)


def _decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Decodes 16 groups of 16, six bits a value, in two halves of 128."""
    pairs = blocks[:, :128].reshape(-1, 2, 64)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    values = (low | ((high >> shifts & 3) << 4)).astype(np.float32) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scale[..., None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


# All kinds, so that a file that has some of them opens; those with a function are read.
KINDS: dict[str, Kind] = {
    "F32": Kind(0, 1, 4, _decode_f32),
    "F16": Kind(1, 1, 2, _decode_f16),
    "BF16": Kind(30, 1, 2, _decode_bf16),
    "Q8_0": Kind(8, 32, 34, _decode_q8_0),
    "Q4_0": Kind(2, 32, 18, _decode_q4_0),
    "Q4_1": Kind(3, 32, 20, _decode_q4_1),
    "Q4_K": Kind(12, 256, 144, _decode_q4_k),
    "Q6_K": Kind(14, 256, 210, _decode_q6_k),
    "Q5_0": Kind(6, 32, 22, _decode_q5_0),
    "Q5_1": Kind(7, 32, 24, _decode_q5_1),
    "Q2_K": Kind(10, 256, 84, _decode_q2_k),
    "Q3_K": Kind(11, 256, 110, _decode_q3_k),
    "Q5_K": Kind(13, 256, 176, _decode_q5_k),
    "IQ2_XXS": Kind(16, 256, 66),
    "IQ2_XS": Kind(17, 256, 74),
    "IQ3_XXS": Kind(18, 256, 98),
    "IQ1_S": Kind(19, 256, 50),
    "IQ4_NL": Kind(20, 32, 18, _decode_iq4_nl),
    "IQ3_S": Kind(21, 256, 110),
    "IQ2_S": Kind(22, 256, 82),
    "IQ4_XS": Kind(23, 256, 136, _decode_iq4_xs),
    "I8": Kind(24, 1, 1),
    "I16": Kind(25, 1, 2),
    "I32": Kind(26, 1, 4),
    "I64": Kind(27, 1, 8),
    "F64": Kind(28, 1, 8),
    "IQ1_M": Kind(29, 256, 56),
    "TQ1_0": Kind(34, 256, 54),
    "TQ2_0": Kind(35, 256, 66),
    "MXFP4": Kind(39, 32, 17),
}
KIND_NAMES = {kind.number: name for name, kind in KINDS.items()}


def _encode_f32(values: np.ndarray) -> np.ndarray:
    return values.astype("<f4", copy=False)


def _encode_f16(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2")


def _encode_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")  # ties to even


def _encode_q8_0(values: np.ndarray) -> np.ndarray:
    """Encodes blocks of 32: a float16 scale, then int8 rounded half away from zero."""
    rows = values.reshape(-1, 32)
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = rows * inverse
    whole = np.trunc(scaled)
    whole += np.sign(scaled) * (np.abs(scaled - whole) >= 0.5)
    packed = [scale.astype("<f2").view(np.uint8), whole.astype(np.int8).view(np.uint8)]
    return np.concatenate(packed, axis=1)


# What can be written: the function and the number of general.file_type.
WRITERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "F32": (_encode_f32, 0),
    "F16": (_encode_f16, 1),
    "Q8_0": (_encode_q8_0, 7),
    "BF16": (_encode_bf16, 32),
}
