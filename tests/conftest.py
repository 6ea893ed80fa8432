"""What every test shares: one CPU device, compiled programs kept, its own data cache.

Environment variables are set here, before any test imports JAX; a variable that the
user has set stays. A test that needs more devices starts a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

DEFAULTS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(Path.home() / ".cache" / "lmx" / "test-xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

# Compiling takes long once and then never again: a deadline would only be flaky.
settings.register_profile("lmx", deadline=None)
settings.load_profile("lmx")


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Keeps prepared data of tests, shared by the xdist workers of one session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder))
        yield folder
