"""Token stores of parts → the store of the whole, byte for byte as if written at once.

What a store holds is one after the other in its files, so joining is copying; only
offsets are moved. Memory does not grow with the stores.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmx.data import store

SUMMED = ("tokens", "documents", "source_bytes", "targets")
COPIED_BYTES = 1 << 20


def join_stores(directory: Path, parts: Sequence[Path]) -> dict[str, Any]:
    """Writes the store of all that `parts` hold, in their order, into a new directory.

    Each is a store of the same tokenizer with the same files. Returns what the manifest
    counts. Raises a `DataError` for a part that is not as its own manifest says.
    """
    manifests = [store.read_manifest(part) for part in parts]
    about = {k: v for k, v in manifests[0].items() if k not in ("files", "seal")}
    for manifest in manifests[1:]:
        assert set(manifest["files"]) == set(manifests[0]["files"])
        for key in about:
            if key in SUMMED:
                about[key] += manifest[key]
            else:
                assert about[key] == manifest[key]
    directory.mkdir(parents=True)
    for name in manifests[0]["files"]:
        with open(directory / name, "wb") as file:
            join = _join_offsets if name.endswith(".npy") else _join_bytes
            join(file, [part / name for part in parts])
            file.flush()
            os.fsync(file.fileno())
    store.write_manifest(directory, about)
    return about


def _join_bytes(file: BinaryIO, paths: Sequence[Path]) -> None:
    for path in paths:
        with open(path, "rb") as part:
            shutil.copyfileobj(part, file, COPIED_BYTES)


def _join_offsets(file: BinaryIO, paths: Sequence[Path]) -> None:
    """Writes where each document starts, and the end, as `np.save` writes an array."""
    # Opened one at a time: of many parts, maps would be too many.
    count = 1 + sum(len(np.load(path, mmap_mode="r")) - 1 for path in paths)
    header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.int64))
    np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
    file.write(np.zeros(1, "<i8").tobytes())
    start = 0
    for path in paths:
        ends = start + np.load(path)[1:]
        file.write(ends.astype("<i8").tobytes())
        start = int(ends[-1]) if len(ends) else start
