"""Documents whose owners said no: by a list, in robots.txt, or on the page itself.

A list has a domain a line, which covers its subdomains, or the beginning of addresses
(`example.org/blog/`), on that host and its subdomains. A line such as `co.uk` or
`github.io` is taken at its word: it covers all that ends so. How archives of the web
are read is in `lmx.data`; the rules of robots.txt are gathered in `robots`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from lmx.core.errors import DataError
from lmx.curate.addresses import address, domains
from lmx.curate.config import BuildConfig
from lmx.curate.robots import Robots
from lmx.data import places
from lmx.data.pages import TDM


@dataclasses.dataclass(frozen=True)
class OptOuts:
    """Who said no; made once in each process."""

    hosts: Mapping[str, tuple[str, ...]]
    """Host → how the paths begin that are meant; '' is all of them."""
    crawlers: tuple[str, ...]
    robots: Robots

    @classmethod
    def of(cls, config: BuildConfig, robots: Robots) -> OptOuts:
        """Returns what a config says; reads its list."""
        hosts: dict[str, list[str]] = {}
        if config.optouts is not None:
            for line in places.read_lines(config.optouts, "optouts"):
                if line.startswith("#"):
                    continue
                try:
                    host, path = address(line.removeprefix("*."))
                except ValueError as error:
                    raise DataError(
                        f"optouts={config.optouts!r}: {line[:80]!r} is no domain "
                        f"nor the beginning of an address ({error}); mend that line"
                    ) from error
                hosts.setdefault(host, []).append("" if path == "/" else path)
        return cls(
            {host: tuple(paths) for host, paths in hosts.items()},
            tuple(name.lower() for name in config.crawlers),
            robots,
        )

    @property
    def asks(self) -> bool:
        """Returns whether the address of a document can make a difference."""
        return bool(self.hosts or (self.crawlers and self.robots.known))

    def refusal(self, url: str, signals: Iterable[str]) -> tuple[str, str] | None:
        """Returns under which reason a document is left out, and why; None keeps it.

        Raises a ValueError for an address that is none.
        """
        for signal in signals if self.crawlers else ():
            agent, _, rule = signal.partition(": ")
            if agent == "*" or agent in self.crawlers:
                whom = "" if agent == "*" else f" for {agent}"
                said = "no text mining" if signal == TDM else rule
                return "page says no", f"{said}{whom}"
        if not url:
            return None
        host, path = address(url)
        for above in domains(host):
            for start in self.hosts.get(above, ()):
                if path.startswith(start):
                    return "opted out", f"{above}{start} is on the list"
        if crawler := self.robots.refused(host, url, self.crawlers):
            return "robots.txt", f"{host} refuses {crawler}"
        return None
