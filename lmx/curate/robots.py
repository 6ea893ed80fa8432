"""The robots.txt of hosts, and whom they refuse: found in archives, or saved in files.

RFC 9309 by protego (extra `web`): the group that names a crawler, else that of all; of
rules the longest; wildcards. Only what a server gave counts: none refuses nobody.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError
from lmx.core.workdir import write_atomic
from lmx.curate.addresses import SCHEME, address
from lmx.data import places, streams, warc
from lmx.data.pages import library
from lmx.data.places import FileEntry

PARSED = 1024  # hosts whose rules are held ready


class Robots:
    """The rules of hosts; `known` says whether there are any."""

    def __init__(self, content: dict[str, str]):
        """Takes the content of each host's robots.txt."""
        self._content = content
        self._rules = functools.lru_cache(PARSED)(self._parse)
        self.known = bool(content)

    @classmethod
    def of(cls, saved: str | None, folder: Path | None) -> Robots:
        """Returns what was saved at a place, and what `gather` left in a folder.

        Of a host the saved one counts, else the latest. Raises a `DataError` for a
        file that cannot be read, or has no host's name.
        """
        latest: dict[str, tuple[str, str]] = {}
        for file in sorted(folder.glob("*.json")) if folder else ():
            for url, date, content in json.loads(file.read_text("utf-8")):
                try:
                    host = address(url)[0]
                except ValueError:  # of no host that a page could have
                    continue
                latest[host] = max(latest.get(host, ("", "")), (date, content))
        content = {host: content for host, (_, content) in latest.items()}
        return cls(content | (_saved(saved) if saved else {}))

    def refused(self, host: str, url: str, crawlers: Sequence[str]) -> str | None:
        """Returns the first of some crawlers that a host does not let read a URL."""
        if host not in self._content:
            return None
        rules, url = self._rules(host), url if SCHEME.match(url) else f"http://{url}"
        return next((name for name in crawlers if not rules.can_fetch(url, name)), None)

    def _parse(self, host: str) -> Any:
        return library("protego").Protego.parse(self._content[host])


def has_archives(entries: Sequence[FileEntry]) -> bool:
    """Returns whether `gather` could find anything in some files."""
    return any(warc.is_archive(entry.name) for entry in entries)


def gather(entries: Sequence[FileEntry], file: Path) -> None:
    """Writes the robots.txt of all hosts in the archives among some files, once."""
    if file.exists():
        return
    archives = (entry for entry in entries if warc.is_archive(entry.name))
    found = [answer for entry in archives for answer in warc.robots(entry)]
    write_atomic(file, json.dumps(found).encode())


def _saved(place: str) -> dict[str, str]:
    """Returns the content by host of HOST/robots.txt and HOST.txt."""
    if (listing := places.find(place)) is None:
        raise DataError(f"robots={place!r}: nothing is there; mend it")
    found = {}
    for entry in listing.entries:
        name = entry.name.removesuffix("/robots.txt").removesuffix(".txt")
        try:
            if name in (entry.name, "robots") or "/" in name:
                raise ValueError("write HOST/robots.txt or HOST.txt")
            content = b"".join(streams.chunks(entry, most=streams.LONGEST_LINE))
            host = address(name)[0]
        except (ValueError, streams.TooLong) as error:
            raise DataError(
                f"robots={place!r}: {entry.name} is no host's robots.txt ({error}); "
                "mend or remove it"
            ) from error
        found[host] = content[: warc.ROBOTS_BYTES].decode("utf-8", "replace")
    return found
