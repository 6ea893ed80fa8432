"""lmx: the whole life of a language model, in JAX.

    import lmx
    lm = lmx.load("runs/quickstart")
    print(lm.generate("def "))

Importing lmx loads no JAX; using it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmx.api import LanguageModel, load, train
    from lmx.core.config import default_config, variant
    from lmx.models.families import family

__version__ = "0.1.0"

_HOMES = {
    "LanguageModel": "lmx.api",
    "load": "lmx.api",
    "train": "lmx.api",
    "default_config": "lmx.core.config",
    "variant": "lmx.core.config",
    "family": "lmx.models.families",
}
__all__ = ["LanguageModel", "default_config", "family", "load", "train", "variant"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lmx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
