"""Whether one may: what a build is for against what its sources allow."""

from __future__ import annotations

from lmx.core.errors import DataError
from lmx.curate.config import BuildConfig


def check(config: BuildConfig) -> None:
    """Raises a `DataError` that names every source that does not allow a use."""
    refused = [
        f"{name} ({source.licence}) does not allow {', '.join(missing)}"
        for name, source in config.sources.items()
        if (missing := [use for use in config.uses if use not in source.uses])
    ]
    if refused:
        raise DataError(
            f"uses={config.uses} is refused: {'; '.join(refused)}. Leave these sources "
            "out, ask for less in config.uses, or state the uses that their licence "
            "does allow in sources.NAME.uses"
        )
