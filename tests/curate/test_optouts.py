"""Who said no, against lists, robots.txt and pages written by hand."""

from __future__ import annotations

import json
import random
import sys
import urllib.robotparser

import pytest

from lmx.core.errors import DataError, UserError
from lmx.curate.addresses import address
from lmx.curate.config import build_config, default_build_config
from lmx.curate.optouts import OptOuts
from lmx.curate.robots import Robots
from lmx.data.pages import TDM

SOURCE = {"path": "x", "licence": "CC0-1.0", "uses": ("train",)}


def optouts(folder, lines=(), robots=None, **changes) -> OptOuts:
    made = default_build_config()
    made.sources = {"a": SOURCE}
    if lines:
        (folder / "list.txt").write_text("\n".join(lines), "utf-8")
        made.optouts = str(folder / "list.txt")
    made.update(changes)
    return OptOuts.of(build_config(made), Robots(robots or {}))


@pytest.mark.parametrize(
    ("line", "covered", "not_covered"),
    [
        (
            "Example.ORG",
            ["http://example.org", "https://a.b.example.org:8080/x?y", "EXAMPLE.org/a"],
            ["http://notexample.org/", "http://example.org.evil.com", "http://org/"],
        ),
        ("*.example.org.", ["http://www.example.org/", "http://example.org"], []),
        (
            "https://example.org/blog/",
            ["http://www.example.org/blog/1", "https://u:p@example.org/%62log/x"],
            ["http://example.org/", "http://example.org/blog", "http://x.org/blog/"],
        ),
        (
            "example.org/~me",
            ["http://example.org/%7Eme/x", "http://example.org/a/../~me/"],
            ["http://example.org/you/~me"],
        ),
        ("example.org/?id=", ["http://example.org?id=3"], ["http://example.org/?x=1"]),
        ("co.uk", ["http://www.bbc.co.uk/"], ["http://co.uk.com/"]),
        ("127.0.0.1", ["http://127.0.0.1:80/"], ["http://1.127.0.0.2"]),
    ],
)
def test_a_line_covers_what_is_below_it_and_no_more(
    tmp_path, line, covered, not_covered
):
    made = optouts(tmp_path, ["# a remark", "", line])
    assert made.asks
    for url in covered:
        assert made.refusal(url, ())[0] == "opted out", url
    for url in not_covered:
        assert made.refusal(url, ()) is None, url


def test_hosts_of_any_script_are_one_however_they_are_spelled(tmp_path):
    pytest.importorskip("idna")
    spellings = ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example"]
    for line in spellings:
        made = optouts(tmp_path, [line])
        for url in spellings:
            assert made.refusal(f"http://{url}/a", ()) is not None
    assert address("http://faß.de/")[0] == "xn--fa-hia.de"  # UTS 46, as browsers do


def test_planted_opt_outs_are_all_found_and_nothing_else(tmp_path):
    draw = random.Random(0)
    names = [f"{''.join(draw.choices('abcdef', k=6))}.org" for _ in range(2000)]
    listed = set(draw.sample(names, 300))
    made = optouts(tmp_path, [draw.choice(("{}", "*.{}")).format(n) for n in listed])
    for name in names:
        url = f"https://{draw.choice(('', 'www.', 'a.b.'))}{name}/{draw.random()}"
        assert (made.refusal(url, ()) is not None) == (name in listed)


@pytest.mark.parametrize("url", ["http://", "http:///x", "http://[x/", "http://a b/"])
def test_an_address_that_is_none_is_told(tmp_path, url):
    with pytest.raises(ValueError, match=r"no host|URL|IPv6"):
        optouts(tmp_path, ["x.org"]).refusal(url, ())
    with pytest.raises(DataError, match="is no domain nor the beginning"):
        optouts(tmp_path, [url])


ROBOTS = """User-agent: *
Disallow: /private
Allow: /private/open

User-agent: GPTBot
User-agent: CCBot
Disallow: /

User-agent: OtherBot
Disallow: /other
"""


@pytest.mark.parametrize("path", ["/", "/private/x", "/private/open", "/other", "/a?b"])
def test_robots_refuse_as_the_standard_library_says(tmp_path, path):
    pytest.importorskip("protego")
    reference = urllib.robotparser.RobotFileParser()
    # It takes the first rule that fits, not the longest.
    swapped = ROBOTS.replace("Disallow: /private\nAllow: /private/open", "A").replace(
        "A\n\n", "Allow: /private/open\nDisallow: /private\n\n"
    )
    reference.parse(swapped.splitlines())
    for crawler in ("*", "GPTBot", "CCBot", "OtherBot", "ClaudeBot"):
        made = optouts(tmp_path, robots={"x.org": ROBOTS}, crawlers=(crawler,))
        refused = made.refusal(f"http://x.org{path}", ())
        assert (refused is None) == reference.can_fetch(crawler, f"http://x.org{path}")
        assert made.refusal(f"http://y.org{path}", ()) is None


def test_rules_with_wildcards_and_letters_that_are_escaped(tmp_path):
    pytest.importorskip("protego")
    rules = "User-agent: *\nDisallow: /*.pdf$\nDisallow: /grün\nDisallow: /a%3Fb\n"
    made = optouts(tmp_path, robots={"x.org": rules})
    for path in ("/a/b.pdf", "/gr%C3%BCn/x", "/grün"):
        assert made.refusal(f"http://x.org{path}", ()) == (
            "robots.txt",
            "x.org refuses *",
        )
    assert made.refusal("http://x.org/b.pdf.html", ()) is None


def test_saved_robots_count_before_those_of_archives(tmp_path):
    pytest.importorskip("protego")
    saved = tmp_path / "saved"
    (saved / "x.org").mkdir(parents=True)
    (saved / "x.org" / "robots.txt").write_text("User-agent: *\nDisallow: /x")
    (saved / "Y.org.txt").write_text("User-agent: *\nDisallow: /y")
    found = tmp_path / "found"
    found.mkdir()
    for number, date in enumerate(("2024", "2026", "2025")):
        rules = f"User-agent: *\nDisallow: /{date}"
        content = [
            [f"http://{host}/robots.txt", date, rules] for host in ("x.org", "z.org")
        ]
        (found / f"{number}.json").write_text(json.dumps(content))
    robots = Robots.of(str(saved), found)
    assert robots.refused("x.org", "x.org/x", ("*",)) == "*"
    assert robots.refused("x.org", "x.org/2026", ("*",)) is None
    assert robots.refused("y.org", "http://y.org/y", ("*",)) == "*"
    refused = [robots.refused("z.org", f"z.org/{d}", ("*",)) for d in (2025, 2026)]
    assert refused == [None, "*"]
    (saved / "deep" / "er").mkdir(parents=True)
    (saved / "deep" / "er" / "robots.txt").write_text("")
    with pytest.raises(DataError, match=r"deep/er/robots\.txt is no host's"):
        Robots.of(str(saved), None)


@pytest.mark.parametrize(
    ("signal", "why"),
    [
        ("*: noai", "noai"),
        ("gptbot: noindex", "noindex for gptbot"),
        (TDM, "no text mining"),
        ("googlebot: noindex", None),
        ("description: none", None),
    ],
)
def test_pages_refuse_for_all_or_for_crawlers_that_are_named(tmp_path, signal, why):
    refusal = optouts(tmp_path).refusal("", (signal,))
    assert refusal == (why and ("page says no", why))
    assert optouts(tmp_path, crawlers=()).refusal("", (signal,)) is None


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "idna", None)
    with pytest.raises(UserError, match=r"pip install 'lmx\[web\]'"):
        optouts(tmp_path, ["bücher.example"])


def test_a_saved_robots_txt_without_a_host_is_refused(tmp_path):
    (tmp_path / "robots.txt").write_text("User-agent: *\nDisallow: /")
    for place in (tmp_path, tmp_path / "robots.txt"):
        with pytest.raises(DataError, match=r"robots\.txt is no host's"):
            Robots.of(str(place), None)
