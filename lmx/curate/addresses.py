"""Addresses of documents, in one spelling, so that they can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from lmx.core.errors import UserError

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def address(url: str) -> tuple[str, str]:
    """Returns the host of a URL, in ASCII and small letters, and the path with a query.

    Neither the scheme, a user nor a port counts, and escaped letters are as if they
    were not. Raises a ValueError where there is no host.
    """
    parts = urlsplit(url if SCHEME.match(url) else f"//{url}")
    host = (parts.hostname or "").rstrip(".")
    if not host or re.search(r"\s", host):
        raise ValueError("no host")
    query = f"?{parts.query}" if parts.query else ""
    return _ascii(host), _plain(parts.path or "/") + unquote(query)


def domains(host: str) -> Iterator[str]:
    """Yields a host and the domains above it."""
    while host:
        yield host
        host = host.partition(".")[2]


def _plain(path: str) -> str:
    """Returns a path without escapes, '.', '..' and empty steps."""
    steps: list[str] = []
    for step in unquote(path).split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    end = "/" if steps and path.endswith("/") else ""
    return "/" + "/".join(steps) + end


def _ascii(host: str) -> str:
    """Returns a host as the names of its servers are: Bücher.de is xn--bcher-kva.de."""
    if host.isascii():
        return host
    try:
        import idna
    except ImportError as error:
        raise UserError(
            f"the host {host!r} needs idna; install it: pip install 'lmx[web]'"
        ) from error
    try:
        return idna.encode(host, uts46=True, transitional=False).decode()
    except idna.IDNAError:  # no such host can be, but a list may have it
        return host.lower()
