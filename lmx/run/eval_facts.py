"""What a result was made with: model, task, data, settings, machine, versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmx.api import LanguageModel
    from lmx.evaluate.results import Settings
    from lmx.evaluate.runner import Subject
    from lmx.tasks.reading import Data
    from lmx.tasks.task import Task

# Equal ones make a result that is there already the same.
DECISIVE = ("task_digest", "settings", "model", "data_files")
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "sacrebleu")


def facts(
    model: LanguageModel,
    subject: Subject,
    task: Task,
    data: Data,
    settings: Settings,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Returns what results.json says beside the scores."""
    from lmx.models.counting import parameter_count

    config = subject.generator.config
    return {
        "task_digest": task.digest,
        "settings": settings._asdict(),
        "data_files": data.files,
        "model": {
            "name": str(options.workdir),
            "step": model.step,
            "files": _files(Path(options.workdir), model.step),
            "parameters": parameter_count(model.model),
            "tokenizer": model.tokenizer.fingerprint,
            "compute_dtype": config.compute_dtype,
            "quantize": options.quantize,
        },
        "machine": _machine(),
        "versions": _versions(),
    }


def same_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Returns whether a result of before is the one that would be made now."""
    return all(before.get(name) == now[name] for name in DECISIVE)


def _files(place: Path, step: int) -> list[list[Any]]:
    """Returns name, size and time of the files that hold the weights."""
    steps = place / "checkpoints" / str(step)
    root = steps if steps.is_dir() else place
    files = [root] if root.is_file() else sorted(root.glob("*"))
    known = [(file, file.stat()) for file in files if file.is_file()]
    return [[file.name, info.st_size, info.st_mtime_ns] for file, info in known]


def _machine() -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": f"{len(jax.devices())} × {device.device_kind}",
    }


def _versions() -> dict[str, str]:
    from lmx import __version__

    found = {"lmx": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
