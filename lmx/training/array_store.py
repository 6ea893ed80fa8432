"""Arrays on the disk: the one module that knows Orbax.

A tree is written as flat items, name -> array, with the names of `lmx.core.trees`:
"params" and "ema" each in an item of its own, so that they can be read without the
rest, all else in "train". Whether files are intact, and which to keep, is the business
of `lmx.training.checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.core.trees import flatten_with_names

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]

_ITEMS = ("params", "ema", "train")


class ArrayStore:
    """Everything that this project asks of Orbax."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        # Weights do not compress (8 % at best); trying to halves the speed of saving
        # and takes the processor from training.
        handlers = {
            item: ocp.PyTreeCheckpointHandler(use_compression=False) for item in _ITEMS
        }
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**handlers)
        )
        logging.getLogger("absl").addFilter(_is_not_orbax)

    def start_write(self, path: Path, tree: Any) -> None:
        """Copies the arrays of a tree and starts to write them to a new directory."""
        save = self._ocp.args.PyTreeSave
        items = _by_item(dict(flatten_with_names(tree)))
        self._checkpointer.save(
            path,
            args=self._ocp.args.Composite(
                **{item: save(leaves) for item, leaves in items.items()}
            ),
        )

    def wait(self) -> None:
        """Waits until the arrays are written; raises what failed."""
        self._checkpointer.wait_until_finished()

    def shapes(self, path: Path) -> Shapes:
        """Returns name -> (shape, dtype) of every leaf of a checkpoint."""
        metadata = self._checkpointer.metadata(path).item_metadata
        return {
            name: (tuple(leaf.shape), leaf.dtype)
            for item in _ITEMS
            if item in metadata and metadata[item] is not None
            for name, leaf in metadata[item].tree.items()
        }

    def read(self, path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Returns name -> array for name -> jax.ShapeDtypeStruct.

        A leaf without a sharding is put on the first local device.
        """
        import jax

        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        args = {}
        for item, leaves in _by_item(wanted).items():
            how = {
                name: self._ocp.ArrayRestoreArgs(
                    sharding=getattr(leaf, "sharding", None) or first,
                    global_shape=tuple(leaf.shape),
                    dtype=leaf.dtype,
                )
                for name, leaf in leaves.items()
            }
            # Some leaves may be asked for without the others of their item.
            args[item] = self._ocp.args.PyTreeRestore(
                item=leaves, restore_args=how, partial_restore=True
            )
        found = self._checkpointer.restore(path, args=self._ocp.args.Composite(**args))
        return {name: leaf for item in args for name, leaf in dict(found[item]).items()}

    def close(self) -> None:
        """Releases threads."""
        self._checkpointer.close()
        logging.getLogger("absl").removeFilter(_is_not_orbax)


def state_digest(tree: Any) -> str:
    """Returns the SHA-256 of (name, dtype, shape, bytes) of every leaf, by name.

    Two states have the same digest if and only if they are the same bit for bit; how
    they are sharded does not matter. Every shard must be on this process.
    """
    import numpy as np

    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_with_names(tree), key=lambda pair: pair[0]):
        array = np.ascontiguousarray(np.asarray(leaf))
        header = [name, str(array.dtype), list(np.shape(leaf))]
        digest.update(json.dumps(header).encode() + b"\n")
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """Drops Orbax's log lines: its errors are raised, and need no second traceback."""
    return "/orbax/" not in record.pathname


def item_of(name: str) -> str:
    """Returns the item that holds a leaf: "params", "ema" or "train"."""
    first = name.split("/", 1)[0]
    return first if first in ("params", "ema") else "train"


def misfit(wanted: Mapping[str, Any], saved: Shapes) -> str | None:
    """Returns in words the first leaf that differs from what was saved, or None."""
    for name, leaf in wanted.items():
        if name not in saved:
            return f"{name} is missing"
        shape, dtype = saved[name]
        if shape != tuple(leaf.shape):
            return f"{name} has shape {shape}, not {tuple(leaf.shape)}"
        if str(dtype) != str(leaf.dtype):
            return f"{name} is {dtype}, not {leaf.dtype}"
    left_over = next((name for name in saved if name not in wanted), None)
    return left_over and f"{left_over} has no place in this run's state"


def _by_item(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {}
    for name, leaf in named.items():
        items.setdefault(item_of(name), {})[name] = leaf
    return items
