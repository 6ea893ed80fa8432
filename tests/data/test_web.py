"""Web archives and pages, against archives written by hand, whole and damaged."""

from __future__ import annotations

import gzip
import random

import pytest

from lmx.core.errors import DataError
from lmx.data import pages, places, readers, streams, warc

pytest.importorskip("resiliparse")

MATTER = "This paragraph is what the page is about, and it is long enough. " * 3


def html(title: str, *, head: str = "", body: str = "") -> bytes:
    return (
        f"<!doctype html><html lang='en-GB'><head><title>{title}</title>{head}</head>"
        "<body><nav><a href='/'>Home</a> <a href='/b'>Menu</a></nav><main>"
        f"<h1>{title}</h1><p>{MATTER}</p>{body}</main><footer>Imprint</footer>"
    ).encode()


def answer(
    url: str,
    body: bytes,
    *headers: str,
    status: str = "200 OK",
    kind: str = "text/html",
    record: str = "response",
) -> bytes:
    """Returns a record of a WARC."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, "", ""]
    block = "\r\n".join(lines).encode() + body
    if record != "response":
        block = body
    head = (
        f"WARC/1.0\r\nWARC-Type: {record}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Type: application/http\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def read(path, content: bytes) -> list[readers.Record]:
    path.write_bytes(content)
    found = places.find(str(path))
    assert found is not None
    return list(readers.read(found.entries, whole_files=True))


GOOD = [answer(f"http://x.org/{n}", html(f"Page {n}")) for n in range(4)]


def titles(found: list[readers.Record]) -> list[str]:
    return [r.fields["title"] for r in found if r.fields]


@pytest.mark.parametrize("size", [11, 1 << 20])
def test_an_archive_is_its_pages(tmp_path, monkeypatch, size):
    monkeypatch.setattr(streams, "READ_BYTES", size)
    content = (
        answer("", b"software: a crawler", record="warcinfo")
        + answer("http://x.org/0", b"GET / HTTP/1.1\r\n\r\n", record="request")
        + GOOD[0]
        + answer("http://x.org/a.png", b"\x89PNG", kind="image/png")
        + answer("http://x.org/gone", html("Gone"), status="404 Not Found")
        + GOOD[1]
    )
    whole = read(tmp_path / "a.warc", content)
    assert [r.name for r in whole] == [f"a.warc#{n}" for n in (2, 3, 4, 5)]
    assert [r.other for r in whole] == [None, "image/png", "status 404", None]
    assert whole[0].fields["url"] == "http://x.org/0"
    assert whole[0].fields["date"] == "2026-01-02T03:04:05Z"
    assert whole[0].fields["title"] == "Page 0"
    assert whole[0].fields["language"] == "en"
    assert MATTER.strip() in whole[0].fields["text"]
    assert "Menu" not in whole[0].fields["text"]
    assert "Menu" in whole[0].fields["html"]


def test_packed_and_chunked_answers_are_those_that_are_not(tmp_path):
    brotli = pytest.importorskip("brotli")
    page = html("Page 0")
    half = len(page) // 2
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (page[:half], page[half:], b"")
    )
    gzipped = ("Content-Encoding: gzip",)
    records = [
        answer("http://x.org/0", page),
        answer("http://x.org/0", gzip.compress(page), *gzipped),
        answer("http://x.org/0", page, *gzipped),  # kept unpacked
        answer("http://x.org/0", brotli.compress(page), "Content-Encoding: br"),
        answer("http://x.org/0", chunked, "Transfer-Encoding: chunked"),
        answer("http://x.org/0", page, "Transfer-Encoding: chunked"),
    ]
    found = read(tmp_path / "a.warc", b"".join(records))
    assert all(record.fields == found[0].fields for record in found)
    packed = b"".join(gzip.compress(record) for record in records)  # as crawlers do
    assert [r.fields for r in read(tmp_path / "a.warc.gz", packed)] == [
        r.fields for r in found
    ]


@pytest.mark.parametrize(
    ("damaged", "problem", "rest"),
    [
        (b"some garbage\r\n\0 here\r\n", "not a WARC record", 3),
        (GOOD[1].replace(b"Content-Length: ", b"X: "), "no usable Content-Length", 3),
        (GOOD[1].replace(b"Content-Length: ", b"Content-Length: -"), "no usable", 3),
        (GOOD[1].replace(b"Content-Length: ", b"Content-Length: 1\r\nX: "), "", 3),
        (GOOD[1].replace(b"HTTP/1.1 200", b"HTTP?1.1 200"), "no answer of HTTP", 3),
        (
            GOOD[1].replace(b"WARC-Date", b"X: " + b"a" * 70_000 + b"\r\nWARC-Date"),
            "not a WARC record",
            3,
        ),
        (
            answer("http://x.org/", b"\x1f\x8bxx", "Content-Encoding: gzip"),
            "does not unpack",
            3,
        ),
        (
            answer(
                "http://x.org/", gzip.compress(b"<p>x")[:-9], "Content-Encoding: gzip"
            ),
            "cut short",
            3,
        ),
        (
            answer("http://x.org/", b"2\r\nab\r\nzz", "Transfer-Encoding: chunked"),
            "broken chunks",
            3,
        ),
    ],
)
def test_a_malformed_record_is_told_and_the_others_are_read(
    tmp_path, damaged, problem, rest
):
    found = read(tmp_path / "a.warc", GOOD[0] + damaged + GOOD[2] + GOOD[3])
    assert titles(found) == ["Page 0", "Page 2", "Page 3"][:rest]
    problems = [record.problem for record in found if record.problem]
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_record_that_says_it_is_longer_hides_none(tmp_path):
    longer = GOOD[1].replace(b"Content-Length: ", b"Content-Length: 1")
    found = read(tmp_path / "a.warc", GOOD[0] + longer + b"".join(GOOD[2:] * 9))
    assert titles(found)[:3] == ["Page 0", "Page 2", "Page 3"]
    assert sum(record.problem is not None for record in found) == 1


def test_an_archive_that_is_cut_short_is_named(tmp_path):
    whole = b"".join(GOOD)
    for end in (len(whole) - 100, len(GOOD[0]) + 300):
        with pytest.raises(DataError, match=r"a\.warc ends within a record"):
            read(tmp_path / "a.warc", whole[:end])
    with pytest.raises(DataError, match=r"not a whole gzip file"):
        read(tmp_path / "a.warc.gz", gzip.compress(whole)[:-20])


def test_damage_hides_no_record_that_it_did_not_touch(tmp_path):
    """Bytes are changed, cut out and put in at random places."""
    draw = random.Random(0)
    whole = b"".join(GOOD)
    ends = [sum(map(len, GOOD[: n + 1])) for n in range(4)]
    intact = {r.fields["title"]: r.fields for r in read(tmp_path / "a.warc", whole)}
    told = 0
    for _ in range(300):
        at, length = draw.randrange(len(whole)), draw.choice((1, 3, 50, 700))
        new = draw.choice((b"", draw.randbytes(length), whole[:length], b"\r\n\r\n"))
        try:
            found = read(tmp_path / "a.warc", whole[:at] + new + whole[at + length :])
        except DataError:
            told += 1
            continue
        told += any(record.problem for record in found)
        for n, end in enumerate(ends):
            if end <= at or end - len(GOOD[n]) >= at + length:
                page = intact[f"Page {n}"]
                assert page in [record.fields for record in found]
    assert told > 100


def test_packed_bombs_are_bounded(tmp_path):
    bomb = gzip.compress(b"<p>" + b"a" * (64 << 20))
    (record,) = read(
        tmp_path / "a.warc",
        answer("http://x.org/", bomb, "Content-Encoding: gzip"),
    )
    assert record.problem == "a page of more than 8 MB"
    found = read(
        tmp_path / "b.warc",
        answer("http://x.org/v", b"a" * (9 << 20), kind="video/mp4")
        + answer("http://x.org/h", b"a" * (9 << 20))
        + GOOD[0],
    )
    assert [(r.problem, r.other) for r in found] == [
        (None, "video/mp4"),
        ("a page of more than 8 MB", None),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<div>" * 100_000, "nested 100,000 deep"),
        (b"<a>" * 20_000 + b"<i>" * 20_000, "nested 40,000 deep"),
        (b"<p " + b" ".join(b"a%d=1" % n for n in range(9999)) + b">", "2,000 attri"),
        (b"<p a='>'" + b' b=">"' * 9999 + b">", "2,000 attributes"),
        (
            b"<p x='<i " + b" ".join(b"a%d" % n for n in range(9999)) + b">'>",
            "2,000 at",
        ),
        ((b"<p " + b"<p " * 1990 + b">") * 1200, "tags within tags"),
        (b"<p>" + b"a" * (9 << 20), "a page of more than 8 MB"),
        (b"<p>" + bytes(range(128, 256)) * 50 + b"<meta charset=utf-8>", "no encoding"),
    ],
)
def test_hostile_pages_are_refused_without_being_parsed(tmp_path, content, problem):
    (record,) = read(tmp_path / "x.html", content)
    assert problem in str(record.problem)


@pytest.mark.parametrize("rest", [[], [GOOD[0]]])
def test_an_archive_of_beginnings_is_not_copied_for_each(tmp_path, monkeypatch, rest):
    copied, seek = 0, warc._Stream.seek_record

    def counted(stream, held):
        nonlocal copied
        before = stream._held
        seek(stream, held)
        copied += 0 if stream._held is before else len(stream._held)

    monkeypatch.setattr(warc._Stream, "seek_record", counted)
    content = b"WARC/1.0\r\n" * 3000 + b"\r\n" + b"".join(rest)
    found = read(tmp_path / "a.warc", content)
    assert [r.problem is None for r in found] == [False] * 3000 + [True] * len(rest)
    assert copied <= len(content)


@pytest.mark.parametrize("seed", range(20))
def test_how_an_archive_comes_makes_no_difference(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    wrong = GOOD[1].replace(b"Content-Length: ", b"Content-Length: 1", 1)
    short = GOOD[1].replace(b"Content-Length: ", b"Content-Length: 2\r\nX: ", 1)
    parts = [*GOOD, wrong, short, b"WARC/1.0\r\n", b"\r\n", b"\r\n\r\n", b"WARC/1."]
    content = b"".join(draw.choices(parts, k=12)) + b"".join(GOOD) * 3
    monkeypatch.setattr(warc, "LONGEST_HEAD", 700)
    whole = read(tmp_path / "a.warc", content)
    monkeypatch.setattr(streams, "READ_BYTES", draw.choice([1, 7, 300, 5000]))
    assert read(tmp_path / "a.warc", content) == whole
    assert titles(whole)[-4:] == [f"Page {n}" for n in range(4)]


@pytest.mark.parametrize("part", [b"<p", b"</p", b"<p x='\"", b"< p"])
def test_tags_without_an_end_are_looked_at_once(part):
    """Were each '<' a beginning of its own, it would take hours, not a second."""
    assert pages._hostile(part * (pages.LONGEST_PAGE // len(part))) is None


def test_long_but_plain_pages_are_read(tmp_path):
    plain = b"<p>A paragraph.</p>\n" * 20_000 + b"<ul>" + b"<li>x" * 5_000
    (record,) = read(tmp_path / "x.html", html("T", body=plain.decode()))
    assert record.problem is None
    assert record.fields["text"].count("A paragraph.") == 20_000


@pytest.mark.parametrize(
    ("encoding", "text", "declared"),
    [
        ("utf-8", "Größe 漢字 🙂", "<meta charset=utf-8>"),
        ("utf-8", "Größe", "<meta charset=utf-16>"),
        ("shift_jis", "日本語の文章です", "<meta charset=shift_jis>"),
        ("cp1251", "привет мир", "<meta charset='windows-1251'>"),
        ("utf-16", "Größe", ""),
        ("utf-8-sig", "Größe", "<meta charset=latin1>"),
    ],
)
def test_letters_are_those_that_were_written(tmp_path, encoding, text, declared):
    page = html("T", head=declared, body=f"<p>{text}</p>").decode()
    (record,) = read(tmp_path / "x.htm", page.encode(encoding))
    assert text in record.fields["text"]


def test_a_header_says_the_encoding_before_the_page_does(tmp_path):
    page = html("T", head="<meta charset=latin1>", body="<p>Größe</p>")
    kind = "text/html; charset=UTF-8"
    (record,) = read(tmp_path / "a.warc", answer("http://x.org/", page, kind=kind))
    assert "Größe" in record.fields["text"]


@pytest.mark.parametrize(
    ("head", "headers", "signals"),
    [
        ("<meta name=Robots content='NoIndex, follow'>", (), ("*: noindex",)),
        ("<meta name=gptbot content=noai>", (), ("gptbot: noai",)),
        ("<meta name=description content=none,noai>", (), ("description: none", 0)),
        ("", ("X-Robots-Tag: noai, noimageai",), ("*: noai",)),
        ("", ("X-Robots-Tag: CCBot: noindex",), ("ccbot: noindex",)),
        ("", ("X-Robots-Tag: max-snippet: 3, noindex",), ("*: noindex",)),
        ("", ("TDM-Reservation: 1",), (pages.TDM,)),
        ("", ("TDM-Reservation: 0", "X-Robots-Tag: all"), ()),
        ("<meta name=tdm-reservation content=1>", (), (pages.TDM,)),
    ],
)
def test_what_a_page_forbids_is_kept(tmp_path, head, headers, signals):
    page = answer("http://x.org/", html("T", head=head), *headers)
    (record,) = read(tmp_path / "a.warc", page)
    assert record.signals[:1] == signals[:1]


def test_robots_files_of_an_archive_are_found(tmp_path):
    rules = b"User-agent: *\nDisallow: /private\n"
    path = tmp_path / "a.warc"
    path.write_bytes(
        GOOD[0]
        + answer("https://x.org/robots.txt", rules, kind="text/plain")
        + answer("https://y.org/robots.txt", b"no", status="404 Not Found")
        + answer("https://x.org/docs/robots.txt", b"no", kind="text/plain")
    )
    found = places.find(str(path))
    assert found is not None
    assert list(warc.robots(found.entries[0])) == [
        ("https://x.org/robots.txt", "2026-01-02T03:04:05Z", rules.decode())
    ]


def test_texts_that_were_drawn_from_an_archive_are_read(tmp_path):
    text = "Already a text.\nOf two lines."
    record = answer("http://x.org/", text.encode(), record="conversion")
    (found,) = read(tmp_path / "a.warc.wet.gz", gzip.compress(record))
    assert found.fields["text"] == text
    assert found.fields["url"] == "http://x.org/"


def test_a_saved_page_has_the_address_that_it_gives_itself(tmp_path):
    head = "<link rel=canonical href='https://x.org/a'>"
    (record,) = read(tmp_path / "x.html", html("T", head=head))
    assert record.fields["url"] == "https://x.org/a"
    (record,) = read(tmp_path / "x.html.gz", gzip.compress(html("T")))
    assert record.fields["url"] == ""
