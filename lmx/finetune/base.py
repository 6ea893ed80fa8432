"""Which model an adapter changes: its name, and a digest of the files of its weights.

An adapter is saved without the weights that it was trained beside. They are found again
by their path, and known by their digest: on others the adapter would make nonsense.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.core.errors import CheckpointError, DataError, UserError
from lmx.training.checkpoints import Checkpoints

Facts = Mapping[str, Any]


def base_facts(name: str | os.PathLike[str], *, step: int | None = None) -> Facts:
    """Returns what a checkpoint remembers of its base: {path, step, digest}.

    Of a workdir it is `step`, by default the newest, of published weights None.

    Raises:
      UserError: there is no such model.
      CheckpointError: the step is missing or damaged.
    """
    folder = Path(name)
    if (folder / "checkpoints").is_dir():
        with Checkpoints(folder / "checkpoints") as checkpoints:
            step = checkpoints.latest() if step is None else step
            if step is None:
                raise CheckpointError(
                    f"{name} has no checkpoint yet, so nothing can start from it; wait "
                    "for its first (checkpoint.save_every_steps)"
                )
            digest = checkpoints.content(step)
        return {"path": str(name), "step": step, "digest": digest}
    from lmx.interop.pretrained import open_pretrained

    where = open_pretrained(name).where
    found = hashlib.sha256()
    for file in sorted(where.glob("*.safetensors")) if where.is_dir() else [where]:
        with open(file, "rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return {"path": str(name), "step": None, "digest": found.hexdigest()}


def check_base(name: str | os.PathLike[str], base: Facts, *, where: object) -> None:
    """Raises a `DataError` unless `name` is still the `base` that `where` says it is.

    `where` is a workdir with an adapter, and `base` the `base_facts` of its checkpoint.
    """
    try:
        found = base_facts(name, step=base["step"])
    except UserError as error:
        raise DataError(
            f"{where} holds an adapter of {name}, which cannot be opened ({error}); "
            "bring it back, or tell lmx.load where it is now: base=…"
        ) from error
    if found["digest"] != base["digest"]:
        raise DataError(
            f"{where} holds an adapter of {name}, whose weights have changed since "
            f"({str(base['digest'])[:12]}, now {str(found['digest'])[:12]}): on others "
            "it means nothing; restore them, or tell lmx.load where they are: base=…"
        )
