"""What documents carry along arrives in the store as it was, with its document."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lmx.__main__ import main
from lmx.core.errors import DataError, UserError
from lmx.curate import clean, records
from lmx.curate.build import build
from lmx.curate.config import build_config, default_build_config
from lmx.curate.runner import Processes
from lmx.data.built import open_built

COUNT = 24


def picture(seed: int) -> bytes:
    """Returns a small PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5 + seed, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def caption(number: int) -> str:
    return f"Picture {number} shows {number**2} of {number**3 % 97} things"


@pytest.fixture
def sources(tmp_path):
    """Captions as Parquet, as Hugging Face's pictures, and questions as JSON lines."""
    rows = [{"text": caption(n), "jpeg": picture(n)} for n in range(COUNT)]
    rows.append({"text": caption(2).upper(), "jpeg": picture(99)})  # a copy
    schema = pyarrow.schema([("text", pyarrow.string()), ("jpeg", pyarrow.binary())])
    table = pyarrow.Table.from_pylist(rows, schema)
    pyarrow.parquet.write_table(table, tmp_path / "captions.parquet")
    hub = [
        {"text": f"hub {caption(n)}", "image": {"bytes": picture(n), "path": None}}
        for n in range(COUNT)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(hub), tmp_path / "hub.parquet"
    )
    asked = [
        {
            "prompt": f"What is in picture {n}?",
            "completion": caption(n),
            "picture": base64.b64encode(picture(n)).decode(),
            "sound": base64.b64encode(b"\0" * (n + 1)).decode(),
        }
        for n in range(COUNT)
    ]
    lines = [json.dumps(row) for row in asked]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    rights = {"licence": "CC0-1.0", "uses": ("train",)}
    return {
        "captions": {
            "path": str(tmp_path / "captions.parquet"),
            "columns": {"image": "jpeg"},
            **rights,
        },
        "hub": {
            "path": str(tmp_path / "hub.parquet"),
            "columns": {"image": "image"},
            **rights,
        },
        "asked": {
            "path": str(tmp_path / "asked.jsonl"),
            "format": "prompt_completion",
            "columns": {"image": "picture", "sound": "sound"},
            **rights,
        },
    }


def config(sources, **changes):
    made = default_build_config()
    made.sources = sources
    made.duplicates = ("exact",)
    made.vocab_size = 300
    made.validation_fraction = 0.3
    made.update(changes)
    return build_config(made)


def built(checked, out, *, workers=1):
    stage = lambda name, items: lambda done: None  # noqa: E731 - as the caller has it
    build(checked, out, runner=Processes(workers), stage=stage)
    return open_built(out)


def content(store, name):
    """Returns what each document of a source carries along, by the number it says."""
    source = next(source for source in store.sources if source.name == name)
    found = {}
    for split in ("train", "validation"):
        tokens = getattr(source, split)
        for index, _ in enumerate(store.names(split, name)):
            said = store.tokenizer.decode(tokens.document(index))
            number = int(said.lower().split("picture ")[1].split()[0].strip("?P"))
            found[number] = {
                column: tokens.column(column, index) for column in tokens.columns
            }
    return found


def test_pictures_arrive_with_their_documents(tmp_path, sources):
    store = built(config(sources), tmp_path / "store")
    pictures = {n: {"image": picture(n)} for n in range(COUNT)}
    assert content(store, "captions") == pictures  # the copy went, with its own
    assert content(store, "hub") == pictures
    assert content(store, "asked") == {
        n: {"image": picture(n), "sound": b"\0" * (n + 1)} for n in range(COUNT)
    }
    shown = Image.open(io.BytesIO(content(store, "hub")[3]["image"]))
    assert shown.size == (7, 8)


def test_the_store_does_not_depend_on_how_they_were_cut(tmp_path, sources, monkeypatch):
    built(config(sources), tmp_path / "one")
    monkeypatch.setattr(records, "SHARD_BYTES", 2000)
    monkeypatch.setattr(clean, "ROWS_BYTES", 100)
    monkeypatch.setattr(clean, "EXAMPLE_ROWS_BYTES", 100)
    built(config(sources), tmp_path / "two")
    left, right = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "one", tmp_path / "two")
    )
    assert left == right


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "field 'picture' holds nothing, not bytes"),
        ("", "field 'picture' holds nothing, not bytes"),
        (3, "field 'picture' holds int, not bytes"),
        ("not base64!", "field 'picture' is not base64"),
        ({"path": "a.png"}, "field 'picture' holds nothing, not bytes"),
        (..., "no field 'picture'"),
    ],
)
def test_a_record_without_its_bytes_is_damaged(tmp_path, sources, value, told):
    path = tmp_path / "asked.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[5] |= {"picture": value} if value is not ... else {}
    if value is ...:
        del rows[5]["picture"]
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = {"asked": sources["asked"]}
    store = built(config(asked, bad_records=0.1), tmp_path / "store")
    assert set(content(store, "asked")) == set(range(COUNT)) - {5}
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    (example,) = card["sources"]["asked"]["dropped"]["damaged"]["examples"]
    assert example["name"] == "asked.jsonl#6"
    assert told in example["why"]
    with pytest.raises(DataError, match="1 of 24 records are damaged"):
        built(config(asked), tmp_path / "strict")


def test_a_damaged_column_is_named(tmp_path, sources):
    store = built(config({"hub": sources["hub"]}), tmp_path / "store")
    for name in ("image.bin", "image.npy"):
        path = store.directory / "train" / "hub" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=rf"{name} is damaged"):
            open_built(store.directory)
        path.write_bytes(content)
    with pytest.raises(UserError, match="did you mean 'image'"):
        store.sources[0].train.column("imag", 0)


@pytest.mark.parametrize("name", ["tokens", "Image", "a/b", "offsets"])
def test_a_name_that_no_file_can_have_is_refused(sources, name):
    sources["hub"]["columns"] = {name: "image"}
    with pytest.raises(UserError, match=r"sources\.hub\.columns"):
        config(sources)


def test_show_names_what_a_row_carries_along(tmp_path, sources, capsys):
    built(config({"hub": sources["hub"]}), tmp_path / "store")
    assert main(["data", "show", str(tmp_path / "store"), "--packing=document"]) == 0
    out = capsys.readouterr().out
    name = next(line for line in out.splitlines() if line.startswith("hub.parquet#"))
    size = len(picture(int(name.split("#")[1])))
    assert f"image: {size} bytes" in out
