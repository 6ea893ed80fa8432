"""Bits per byte of general compressors: what a language model has to beat."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

from lmx.core.errors import pick

COMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip -9", lambda text: gzip.compress(text, 9)),
    "bz2": ("bzip2 -9", lambda text: bz2.compress(text, 9)),
    "xz": ("xz -9", lambda text: lzma.compress(text, preset=9)),
}


def compressed_bits_per_byte(name: str, text: bytes) -> tuple[str, float]:
    """Returns the command's name and 8 · compressed size / size of `text`.

    The whole text is one stream, so that the compressor may look back further than a
    model's context.
    """
    label, compress = pick(COMPRESSORS, name, "compressor in evals.compressors")
    return label, 8 * len(compress(text)) / max(1, len(text))
