"""Published weights of four or eight bits, unpacked while they are read.

Two packings of Hugging Face are known: `mxfp4`, in which GPT-OSS keeps its experts, and
`fp8` in blocks, in which DeepSeek-V3 keeps its kernels. Each tensor appears under its
plain name, as transformers unpacks it. Nothing is packed again: an export is plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lmx.core.errors import DataError
from lmx.interop.hf_fields import LARGEST, Fields
from lmx.interop.safetensors_file import DTYPES, Safetensors
from lmx.interop.weights import Source

BLOCKS, SCALES, INVERSE = "_blocks", "_scales", "_scale_inv"
BYTES = 16  # of an MXFP4 block; each holds two numbers
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of 3 bits; the fourth is a sign
BIAS, NO_NUMBER = 127, 255  # of an MXFP4 scale, which is an exponent


class Packed(NamedTuple):
    """A tensor that others hold: its shape, those tensors, and how to read its rows."""

    shape: tuple[int, ...]
    parts: tuple[str, str]
    read: Callable[[slice], np.ndarray]


class Unpacked:
    """The tensors of a source, packed ones under their plain names."""

    def __init__(self, source: Source, packed: Mapping[str, Packed]):
        self._source, self._packed = source, packed
        parts = {part for found in packed.values() for part in found.parts}
        self._others = [name for name in source.names() if name not in parts]

    def names(self) -> list[str]:
        """Returns the names of all tensors."""
        return [*self._others, *self._packed]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, unpacked."""
        found = self._packed.get(name)
        return self._source.shape(name) if found is None else found.shape

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns `rows` of a tensor; only those are unpacked."""
        found = self._packed.get(name)
        return self._source.read(name, rows) if found is None else found.read(rows)


def unpacked(source: Safetensors, config: Any, where: str) -> Source:
    """Returns `source` without its packing, which the `quantization_config` tells.

    Raises:
      UserError: the packing is not known; it is named.
      DataError: a tensor lacks a part, or its parts do not fit each other.
    """
    if config is None:
        return source
    f = Fields({"quantization_config": config}, where)
    f = Fields(f.table("quantization_config"), where, "quantization_config.")
    for name in ("modules_to_not_convert", "dequantize"):
        f.take(name)  # the tensors say which are packed; here all are unpacked
    method = f.take("quant_method")
    if method == "mxfp4":
        unpack = _mxfp4
    elif method == "fp8":
        unpack = partial(_fp8, block=_block(f))
    else:
        remedy = "lmx reads 'mxfp4' and 'fp8'; import the model as it was before"
        raise f.refusal("quant_method", method, remedy)
    f.finish()
    return Unpacked(source, unpack(source))


def _mxfp4(source: Safetensors) -> dict[str, Packed]:
    """Finds tensors [E, I, O] kept as blocks [E, O, I/32, 16] and scales [E, O, I/32].

    A block is 32 numbers of four bits, its scale a power of two for all of them
    (Open Compute Project, Microscaling Formats, version 1.0).
    """
    found, names, pairs = {}, set(source.names()), _scaled_pairs()
    for plain in sorted(_stems(names, BLOCKS, SCALES)):
        parts = blocks, scales = plain + BLOCKS, plain + SCALES
        _check_there(source, names, parts)
        if plain in names:
            raise _wrong(source, plain, f"is there once more as {blocks}")
        shape = source.shape(blocks)
        due = (*shape[:3], BYTES)
        if len(shape) != 4 or shape != due or source.dtype(blocks) != DTYPES["U8"]:
            raise _wrong(source, blocks, f"is no bytes of shape [E, O, I/32, {BYTES}]")
        if source.shape(scales) != shape[:3] or source.dtype(scales) != DTYPES["U8"]:
            raise _wrong(source, scales, f"is no bytes of shape {shape[:3]}")
        shape = (shape[0], 2 * BYTES * shape[2], shape[1])
        read = partial(_read_mxfp4, source, parts, pairs)
        found[plain] = Packed(shape, parts, read)
    return found


def _scaled_pairs() -> np.ndarray:
    """Returns the two numbers of each byte under each scale: uint32 [scale, byte].

    Both are bfloat16, which holds them exactly; the lower four bits are the first.
    """
    values = np.array([*MAGNITUDES, *(-x for x in MAGNITUDES)], np.float32)
    byte = np.arange(256)
    pairs = values[np.stack([byte & 15, byte >> 4], axis=-1)]
    exponents = byte[:, None, None] - BIAS
    with np.errstate(over="ignore"):  # whoever reads refuses what is not finite
        scaled = np.ldexp(pairs, exponents)
    scaled[NO_NUMBER] = np.nan
    return scaled.astype(jnp.bfloat16).view(np.uint32)[..., 0]


def _read_mxfp4(
    source: Safetensors, parts: tuple[str, str], pairs: np.ndarray, rows: slice
) -> np.ndarray:
    blocks, scales = (source.read(part, rows) for part in parts)
    value = pairs[scales[..., None], blocks].view(jnp.bfloat16)
    return value.reshape(*blocks.shape[:2], -1).swapaxes(1, 2)


def _block(f: Fields) -> tuple[int, int]:
    """Reads the size of the blocks of FP8 that share a scale."""
    f.only("activation_scheme", "dynamic")
    f.only("fmt", "e4m3")
    f.only("scale_fmt", "float", "ue8m0")
    f.only("expert_dtype", "fp8")
    block = f.take("weight_block_size")
    fine = isinstance(block, list) and len(block) == 2
    if not fine or not all(type(n) is int and 0 < n < LARGEST for n in block):
        raise f.refusal("weight_block_size", block, "two whole numbers are due")
    return block[0], block[1]


def _fp8(source: Safetensors, block: tuple[int, int]) -> dict[str, Packed]:
    """Finds tensors [O, I] of eight bits with a scale for each block."""
    found, names = {}, set(source.names())
    small = {name for name in names if source.dtype(name) == DTYPES["F8_E4M3"]}
    for weight in sorted(small | _stems(names, INVERSE)):
        parts = weight, scales = weight, weight + INVERSE
        _check_there(source, names, parts)
        shape = source.shape(weight)
        if weight not in small or len(shape) != 2:
            raise _wrong(source, weight, f"has scales but is no FP8 matrix: {shape}")
        due = tuple(-(-n // size) for n, size in zip(shape, block, strict=True))
        wide = source.dtype(scales) in (DTYPES["F32"], DTYPES["BF16"])
        if source.shape(scales) != due or not wide:
            raise _wrong(source, scales, f"is no F32 or BF16 of shape {due}")
        read = partial(_read_fp8, source, parts, block)
        found[weight] = Packed(shape, parts, read)
    return found


def _read_fp8(
    source: Safetensors, parts: tuple[str, str], block: tuple[int, int], rows: slice
) -> np.ndarray:
    """Returns float32: number times scale, rounded once."""
    weight, scales = parts
    taller, wider = block
    span = np.arange(source.shape(weight)[0])[rows]
    scale = source.read(scales).astype(np.float32)[span // taller]
    value = source.read(weight, rows).astype(np.float32)
    with np.errstate(all="ignore"):  # whoever reads refuses what is not finite
        for i in range(scale.shape[1]):  # the last block may be smaller
            value[:, i * wider : (i + 1) * wider] *= scale[:, i, None]
    return value


def _stems(names: Iterable[str], *suffixes: str) -> set[str]:
    """Returns the names that end so, each without its ending."""
    ends = [(name, end) for name in names for end in suffixes if name.endswith(end)]
    return {name.removesuffix(end) for name, end in ends}


def _check_there(source: Safetensors, names: set[str], parts: tuple[str, str]) -> None:
    """Raises a `DataError` unless both parts of a tensor are there."""
    for part, other in (parts, parts[::-1]):
        if part not in names:
            raise _wrong(source, other, f"lacks its other part {part}")


def _wrong(source: Safetensors, name: str, what: str) -> DataError:
    return DataError(f"{source.file(name)}: {name} {what}; download it again")
