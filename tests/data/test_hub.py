"""Data sets of the Hub, by huggingface_hub itself against a server that speaks the
routes it asks for.
"""

from __future__ import annotations

import http.server
import io
import json
import threading
from typing import ClassVar
from urllib.parse import unquote

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from lmx.core.errors import DataError
from lmx.data import places, readers

DATA_SET, REVISION = "/datasets/who/Tiny", "refs/convert/parquet"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for one data set: its listing as a tree, and ranges of its files."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0]
        tree = f"/api{DATA_SET}/tree/{REVISION}"
        if path == f"/api{DATA_SET}/revision/{REVISION}":
            self.answer(json.dumps({"id": "who/Tiny", "siblings": [], "tags": []}))
        elif path == tree or path.startswith(f"{tree}/"):
            below = path.removeprefix(tree).strip("/")
            self.list_files(below, recursive="recursive=true" in self.path)
        elif path.startswith(f"{DATA_SET}/resolve/{REVISION}/"):
            content = self.files[path.partition(f"{REVISION}/")[2]]
            first, _, last = self.headers["Range"][len("bytes=") :].partition("-")
            self.answer(content[int(first) : int(last) + 1], code=206)
        else:
            self.answer("{}", code=404, error="RepoNotFound")

    def list_files(self, below: str, *, recursive: bool) -> None:
        found = {}
        for name, content in self.files.items():
            if name.startswith(f"{below}/" if below else ""):
                parts = name.split("/")
                for end in range(1, len(parts)):
                    folder = "/".join(parts[:end])
                    found[folder] = {"type": "directory", "path": folder, "oid": "1"}
                oid = str(hash(content))
                about = {"type": "file", "path": name, "size": len(content)}
                found[name] = {**about, "oid": oid}
        depth = below.count("/") + bool(below)
        shown = [
            one
            for name, one in sorted(found.items())
            if name.count("/") == depth or (recursive and name.count("/") > depth)
        ]
        error = None if shown else "EntryNotFound"
        self.answer(json.dumps(shown), code=200 if shown else 404, error=error)

    def answer(self, body: str | bytes, *, code: int = 200, error=None) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch):
    """A server for the time of a test; yields its files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        Handler.files.clear()
        yield Handler.files
        server.shutdown()
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def parquet(*texts: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    return file.getvalue()


def test_a_data_set_by_name_is_its_parquet_files(hub):
    hub["default/train/0000.parquet"] = parquet("once", "upon")
    hub["default/validation/0000.parquet"] = parquet("a time")
    found = places.find("hf:who/Tiny")
    assert found is not None
    assert [e.name for e in found.entries] == list(hub)
    read = list(readers.read(found.entries, whole_files=True))
    assert [r.fields["text"] for r in read] == ["once", "upon", "a time"]
    one = places.find("hf:who/Tiny/default/train")
    assert one is not None
    assert [entry.name for entry in one.entries] == ["0000.parquet"]
    assert places.find(f"hf://datasets/who/Tiny@{REVISION}/default/train") == one
    for nothing in ("hf:who/Tiny/default/test", "hf:who/Other"):
        assert places.find(nothing) is None


def test_a_file_that_changes_on_the_hub_is_named(hub):
    hub["0.parquet"] = parquet("one", "two")
    found = places.find("hf:who/Tiny")
    assert found is not None
    reading = readers.read(found.entries, whole_files=True)
    next(reading)
    hub["0.parquet"] = parquet("one", "2wo")
    with pytest.raises(DataError, match="changed while it was read"):
        list(reading)


def test_a_data_set_that_is_converted_in_part_is_refused(hub):
    hub["default/partial-train/0000.parquet"] = parquet("once")
    with pytest.raises(DataError, match="only a part, in default/partial-train"):
        places.find("hf:who/Tiny")
    assert places.find("hf:who/Tiny/default/partial-train") is not None
