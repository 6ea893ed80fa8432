"""A built store reads back as what was written, or an error names the damaged file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lmx.core.errors import DataError, UserError
from lmx.data import built, store
from lmx.data.built import Content, create, open_built, write_part
from lmx.inputs.tokenizers import train_tokenizer


def documents(name: str, count: int) -> list[tuple[str, str]]:
    return [
        (f"{name}.txt#{n}", f"{name} {n} größer 🙂\n" * (1 + n)) for n in range(count)
    ]


class Kept(NamedTuple):
    licence: str
    uses: tuple[str, ...]
    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]


SOURCES = {
    "wiki": Kept("CC0-1.0", ("train",), documents("w", 7), documents("v", 3)),
    "code": Kept("MIT", ("train", "commercial"), documents("c", 5), []),
}


def make(directory: Path, sources=SOURCES, *, size: int = 99) -> Path:
    """Writes a store of parts of so many documents; the last part has none."""
    tokenizer = train_tokenizer("byte", [], 259)
    contents = {}
    for name, (licence, uses, train, validation) in sources.items():
        parts = [
            write_part(
                directory.with_name(f"{directory.name}-{name}-{first}"),
                tokenizer,
                train=train[first : first + size],
                validation=validation[first : first + size],
            )
            for first in range(0, len(train) + size, size)
        ]
        contents[name] = Content(licence, uses, parts)
    create(
        directory,
        tokenizer,
        sources=contents,
        config={"seed": 3},
        card=lambda counts: ({"sources": sorted(counts)}, "<p>card</p>"),
    )
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("built") / "store")


def test_what_was_written_reads_back(whole):
    found = open_built(whole)
    assert [source.name for source in found.sources] == ["code", "wiki"]
    assert found.config == {"seed": 3}
    for source in found.sources:
        content = SOURCES[source.name]
        assert (source.licence, source.uses) == content[:2]
        for split, kept in (("train", source.train), ("validation", source.validation)):
            given = getattr(content, split)
            decoded = [
                found.tokenizer.decode(kept.document(i)) for i in range(len(given))
            ]
            assert decoded == [text for _, text in given]
            assert found.names(split, source.name) == [name for name, _ in given]
    text = found.sources[1].validation_text.read_text("utf-8")
    assert text == "".join(text for _, text in documents("v", 3))


def test_counts_and_card_are_those_of_the_stores(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    for source in open_built(whole).sources:
        assert manifest["sources"][source.name]["train"] == {
            "documents": source.train.num_documents,
            "tokens": source.train.num_tokens,
            "bytes": source.train.source_bytes,
        }
    assert json.loads((whole / "card.json").read_text()) == {
        "sources": ["code", "wiki"]
    }


@pytest.mark.parametrize("size", [1, 2, 99])
def test_the_same_content_gives_the_same_bytes(whole, tmp_path, size):
    make(tmp_path / "again", dict(reversed(SOURCES.items())), size=size)
    left, right = (
        {p.relative_to(d): p.read_bytes() for p in sorted(d.rglob("*")) if p.is_file()}
        for d in (whole, tmp_path / "again")
    )
    assert left == right


def test_every_damage_is_named(whole, tmp_path):
    copy = Path(shutil.copytree(whole, tmp_path / "store"))
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) == 23
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content or b"?")
        flipped[len(flipped) // 2] ^= 1
        for damaged in (None, content[:-2] if content else b"?", bytes(flipped)):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(DataError) as error:
                open_built(copy)
            assert file.name in str(error.value) or "manifest.json" in str(error.value)
            assert str(file.parent) in str(error.value)
            file.write_bytes(content)
    open_built(copy)


def test_stores_of_two_tokenizers_are_refused(whole, tmp_path):
    copy = Path(shutil.copytree(whole, tmp_path / "store"))
    other = train_tokenizer("bpe", ["größer und größer"] * 9, 270)
    directory = copy / "train" / "wiki"
    shutil.rmtree(directory)
    store.write_store(directory, ["other"], other)
    manifest = json.loads((copy / "manifest.json").read_text())
    content = {
        k: v for k, v in manifest.items() if k not in ("format", "files", "seal")
    }
    store.write_manifest(copy, content, files=manifest["files"])
    with pytest.raises(DataError, match=r"train/wiki was made with another tokenizer"):
        open_built(copy)


def test_only_a_built_store_is_taken_for_one(whole, tmp_path):
    assert built.is_built(whole)
    (tmp_path / "train").mkdir()
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    assert not built.is_built(tmp_path)
    assert not built.is_built(tmp_path / "nowhere")
    assert not built.is_built("python_stdlib")
    with pytest.raises(DataError, match="holds no readable data"):
        open_built(tmp_path)


def test_a_store_that_is_there_is_not_replaced(whole):
    with pytest.raises(UserError, match="choose another --out"):
        create(
            whole, train_tokenizer("byte", [], 259), sources={}, config={}, card=None
        )


def test_a_name_that_is_no_folder_name_is_refused(tmp_path):
    content = SOURCES["wiki"]
    with pytest.raises(UserError, match=r"'\.\./wiki' must be of a–z"):
        create(
            tmp_path / "store",
            train_tokenizer("byte", [], 259),
            sources={"../wiki": content},
            config={},
            card=lambda counts: ({}, ""),
        )
    assert os.listdir(tmp_path) == []


def test_line_breaks_in_a_name_keep_one_line_for_each_document(tmp_path):
    named = Kept("CC0-1.0", ("train",), [("a\nb\r#0", "x"), ("c", "y")], [])
    make(tmp_path / "store", {"one": named})
    assert open_built(tmp_path / "store").names("train", "one") == ["a␊b␍#0", "c"]
    assert np.diff(
        open_built(tmp_path / "store").sources[0].train.offsets
    ).tolist() == [3, 3]
