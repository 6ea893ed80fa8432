"""Web archives (WARC, ISO 28500): pages as they were answered, one after the other.

Framing is done here and not by a library: fastwarc and warcio pass a record that is cut
short as if it were whole, and end at the first that is malformed. What a page says is
read in `pages`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from lmx.core.errors import DataError
from lmx.data import pages, streams
from lmx.data.pages import LONGEST_PAGE, Headers
from lmx.data.places import FileEntry
from lmx.data.record import Record

LONGEST_HEAD, BLANK = 64 << 10, b"\r\n\r\n"
ROBOTS_BYTES = 512 << 10  # as much as RFC 9309 wants read
VERSION = re.compile(rb"WARC/[01]\.\d\r?\n")
ROBOTS = re.compile(r"https?://[^/?#]+/robots\.txt", re.IGNORECASE)
STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})")
TEXT = ("text/html", "application/xhtml+xml")


class Answer(NamedTuple):
    """A response of a server, its header parsed; or what is wrong with the record."""

    name: str
    url: str = ""
    date: str = ""
    status: int = 0
    headers: Headers = {}  # noqa: RUF012  # never written to
    body: bytes | None = None
    """None where it is longer than is taken, or the record is no response."""
    kind: str = "response"
    problem: str | None = None


def read(entry: FileEntry, fields: Collection[str]) -> Iterator[Record]:
    """Yields the pages of an archive: `url`, `date` and what `pages.page` finds.

    Of a WET archive, whose records are texts, `text`, `url` and `date`. Raises a
    `DataError` where the archive ends within a record.
    """
    del fields
    for answer in answers(entry):
        if answer.problem is not None:
            yield Record(answer.name, {}, answer.problem)
        elif answer.kind == "conversion":
            text = (answer.body or b"").decode("utf-8", "replace")
            found = {"text": text, "url": answer.url, "date": answer.date}
            yield Record(answer.name, found)
        elif answer.kind == "response":
            yield _page(answer)


def is_archive(name: str) -> bool:
    """Returns whether a file of this name is an archive of answers."""
    return streams.unpacked_name(name).endswith(".warc")


def robots(entry: FileEntry) -> Iterator[tuple[str, str, str]]:
    """Yields (URL, date, content) of each robots.txt in an archive that was found."""
    for answer in answers(entry):
        if ROBOTS.fullmatch(answer.url) and 200 <= answer.status < 300:
            try:
                content = decoded(answer.body or b"", answer.headers)[:ROBOTS_BYTES]
            except ValueError:  # as if the server had given none
                continue
            yield answer.url, answer.date, content.decode("utf-8", "replace")


def _page(answer: Answer) -> Record:
    kind = answer.headers.get("content-type", ["text/html"])[-1].lower()
    kind = kind.partition(";")[0].strip()
    if not 200 <= answer.status < 300:
        return Record(answer.name, {}, other=f"status {answer.status}")
    if kind not in TEXT:
        return Record(answer.name, {}, other=kind or "no type")
    if answer.body is None:
        long = f"a page of more than {LONGEST_PAGE >> 20} MB"
        return Record(answer.name, {}, long)
    try:
        content = decoded(answer.body, answer.headers)
    except ValueError as error:
        return Record(answer.name, {}, str(error))
    return pages.page(
        answer.name, content, url=answer.url, date=answer.date, headers=answer.headers
    )


def answers(entry: FileEntry) -> Iterator[Answer]:
    """Yields the responses and texts of an archive, and every malformed record."""
    stream, number = _Stream(entry), -1
    while stream.more():
        number += 1
        name = f"{entry.name}#{number}"
        head = stream.head()
        version = VERSION.match(head or b"")
        if head is None or not version or VERSION.search(head, 1):
            stream.seek_record(head or b"")
            yield Answer(name, problem="not a WARC record")
            continue
        facts = _headers(head[version.end() :])
        length = facts.get("content-length", [""])[-1]
        if not re.fullmatch(r"\d{1,15}", length):
            stream.seek_record(head)
            yield Answer(name, problem=f"no usable Content-Length ({length[:20]!r})")
            continue
        held = _held(stream, facts, int(length))
        if not stream.ends_record():
            # Its length may be wrong, and what it took in may hold the next one.
            stream.seek_record(held or b"")
            yield Answer(name, problem=f"not as long as it says ({length} bytes)")
        elif held is not None:
            yield _answer(name, facts, held, whole=len(held) == int(length))


def _held(stream: _Stream, facts: Headers, length: int) -> bytes | None:
    """Passes over a record's block; returns the beginning of one that is read."""
    kind = facts.get("warc-type", [""])[-1]
    url = facts.get("warc-target-uri", [""])[-1].strip("<>")
    if kind not in ("response", "conversion") or not url.startswith("http"):
        stream.skip(length)
        return None
    held = stream.take(min(length, LONGEST_HEAD + LONGEST_PAGE))
    stream.skip(length - len(held))
    return held


def _answer(name: str, facts: Headers, block: bytes, *, whole: bool) -> Answer:
    answer = Answer(
        name,
        url=facts["warc-target-uri"][-1].strip("<>"),
        date=facts.get("warc-date", [""])[-1],
        kind=facts["warc-type"][-1],
    )
    if answer.kind == "conversion":
        problem = None if whole else f"more than {LONGEST_PAGE >> 20} MB"
        return answer._replace(body=block, problem=problem)
    head, gap, body = block.partition(b"\r\n\r\n")
    if not gap:
        head, gap, body = block.partition(b"\n\n")
    status = STATUS.match(head)
    if status is None or not gap:
        return answer._replace(problem="no answer of HTTP")
    return answer._replace(
        status=int(status[1]),
        headers=_headers(head.partition(b"\n")[2]),
        body=body if whole and len(body) <= LONGEST_PAGE else None,
    )


def _headers(head: bytes) -> Headers:
    found: Headers = {}
    for line in re.sub(rb"\r?\n[ \t]+", b" ", head).splitlines():
        key, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            found.setdefault(key.strip().lower(), []).append(value.strip())
    return found


def decoded(body: bytes, headers: Headers) -> bytes:
    """Returns the content of a body, out of its chunks and unpacked, if it still is so.

    Many archives keep it unpacked under the header that it came with. Raises a
    ValueError where it is broken, or longer than a page that is taken.
    """
    if "chunked" in headers.get("transfer-encoding", [""])[-1].lower():
        body = _dechunked(body)
    packed = headers.get("content-encoding", [""])[-1].lower()
    if packed in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
        return _inflated(body, zlib.MAX_WBITS | 16)
    if packed == "deflate" and body[:1] == b"\x78":
        return _inflated(body, zlib.MAX_WBITS)
    if packed == "br" and body.lstrip()[:1] != b"<":
        return _unbrotlied(body)
    return body


def _dechunked(body: bytes) -> bytes:
    parts, at = [], 0
    while size := re.compile(rb"([0-9a-fA-F]{1,8})[^\n]{0,200}\n").match(body, at):
        length = int(size[1], 16)
        parts.append(body[size.end() : size.end() + length])
        at = size.end() + length
        if length == 0:
            return b"".join(parts)
        if len(parts[-1]) < length or body[at : at + 2] != b"\r\n":
            break
        at += 2
    if not parts:  # the archive has taken them out
        return body
    raise ValueError("a body of broken chunks")


def _inflated(body: bytes, bits: int) -> bytes:
    unpacker = zlib.decompressobj(bits)
    try:
        content = unpacker.decompress(body, LONGEST_PAGE + 1)
    except zlib.error as error:
        raise ValueError(f"a body that does not unpack ({error})") from error
    if len(content) > LONGEST_PAGE:
        raise ValueError(f"a page of more than {LONGEST_PAGE >> 20} MB")
    if not unpacker.eof:
        raise ValueError("a packed body that is cut short")
    return content


def _unbrotlied(body: bytes) -> bytes:
    brotli = pages.library("brotli")
    unpacker = brotli.Decompressor()
    try:
        content = unpacker.process(body, output_buffer_limit=LONGEST_PAGE + 1)
        while not unpacker.is_finished() and len(content) <= LONGEST_PAGE:
            more = unpacker.process(b"", output_buffer_limit=LONGEST_PAGE + 1)
            if not more:
                raise ValueError("a packed body that is cut short")
            content += more
    except brotli.error as error:
        raise ValueError(f"a body that does not unpack ({error})") from error
    if len(content) > LONGEST_PAGE:
        raise ValueError(f"a page of more than {LONGEST_PAGE >> 20} MB")
    return content


class _Stream:
    """The bytes of an archive, of which some are held."""

    def __init__(self, entry: FileEntry):
        self._chunks, self._path = streams.chunks(entry), entry.path
        self._held, self._at = b"", 0  # what is before is done with
        self._clear = 0  # a head that begins before here ends here, or later

    def _fill(self, least: int) -> int:
        """Holds at least so many bytes, if there are; returns how many are held."""
        size = len(self._held) - self._at
        if size < least:
            parts = [self._held[self._at :]]
            while size < least and (chunk := next(self._chunks, b"")):
                parts.append(chunk)
                size += len(chunk)
            self._clear = max(0, self._clear - self._at)
            self._held, self._at = b"".join(parts), 0
        return size

    def more(self) -> bool:
        """Returns whether anything but line ends is left."""
        while self._fill(1):
            if self._held[self._at] not in b"\r\n":
                return True
            self._at += 1
        return False

    def take(self, size: int) -> bytes:
        """Returns the next bytes; raises a `DataError` where there are fewer."""
        if (there := self._fill(size)) < size:
            raise DataError(
                f"{self._path} ends within a record, {size - there:,} bytes early; "
                "fetch or write it again"
            )
        self._at += size
        return self._held[self._at - size : self._at]

    def skip(self, size: int) -> None:
        """Passes over the next bytes."""
        while size:
            part = min(size, streams.READ_BYTES)
            self.take(part)
            size -= part

    def head(self) -> bytes | None:
        """Returns what comes until after a blank line; None where that is too far."""
        for least in (4096, LONGEST_HEAD):
            self._fill(least)
            start = max(self._at, self._clear - len(BLANK) + 1)
            limit = min(self._at + LONGEST_HEAD, len(self._held))
            end = self._held.find(BLANK, start, limit)
            self._clear = max(self._clear, limit if end < 0 else end)
            if end >= 0:
                return self.take(end + len(BLANK) - self._at)
        return None

    def ends_record(self) -> bool:
        """Returns whether two line ends are next, or nothing, and passes over them."""
        there = self._fill(4)
        for end in (b"\r\n\r\n", b"\n\n"):
            if self._held.startswith(end, self._at):
                self._at += len(end)
                return True
        return there == 0

    def seek_record(self, held: bytes) -> None:
        """Goes to where the next record begins, first in what was taken just now.

        Where that is still here it is not put before the rest: of many such records
        each would cost as much as all that is held.
        """
        start = self._at - len(held)
        if start >= 0 and self._held.startswith(held, start):
            self._at = start + 1
        else:
            self._held, self._at, self._clear = held + self._held[self._at :], 1, 0
        while True:
            if found := VERSION.search(self._held, self._at):
                self._at = found.start()
                return
            self._at = max(self._at, len(self._held) - 9)
            if self._fill(10) < 10:
                self._at = len(self._held)
                return
