"""Whether one may: what a build is for against what its sources allow, and what was
asked to be left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lmx.core.errors import DataError
from lmx.curate.config import BuildConfig
from lmx.data import places

SHOWN = 20  # lines of a list that no document was of
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


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


def removals(config: BuildConfig) -> frozenset[str]:
    """Returns the lines of the removal list, hashes in small letters."""
    if config.removals is None:
        return frozenset()
    lines = places.read_lines(config.removals, "removals")
    return frozenset(line.lower() if SHA256.fullmatch(line) else line for line in lines)


def honoured(config: BuildConfig, tallies: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the card says of lists and refusals, and whether they had effect."""
    listed = removals(config)
    found = {line for tally in tallies.values() for line in tally["removed"]}
    unmatched = sorted(listed - found)
    addresses = {n: t["counts"].get("addresses", 0) for n, t in tallies.items()}
    return {
        "removals": {
            "lines": len(listed),
            "unmatched": len(unmatched),
            "such_as": unmatched[:SHOWN],
        },
        "optouts": config.optouts,
        "robots": config.robots,
        "crawlers": list(config.crawlers),
        "addresses": addresses,
    }


def remarks(told: Mapping[str, Any]) -> list[str]:
    """Returns what the user should hear after a build of what `honoured` said."""
    found = []
    removals, blind = told["removals"], not any(told["addresses"].values())
    if removals["unmatched"]:
        found.append(
            f"removals: {removals['unmatched']:,} of {removals['lines']:,} lines are "
            f"of no document, such as {', '.join(removals['such_as'][:3])}"
        )
    if blind and (told["optouts"] or told["robots"]):
        found.append(
            "opt-outs: no document has an address, so none was compared with the list; "
            "set sources.NAME.url, such as '{url}'"
        )
    return found
