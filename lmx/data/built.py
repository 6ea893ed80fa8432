"""A built store: the sources of a mix, each as tokens, with their rights and a card.

    STORE/manifest.json        kind, tokenizer, config, counts and rights per source,
                               size and sha256 of what is named here
    STORE/tokenizer/           as `Tokenizer.save` writes it, and chat_template.jinja
                               where conversations were encoded with one
    STORE/train/NAME/          a token store, with what documents carry along, and
                               names.txt, a line for each document
    STORE/validation/NAME/     the same, and text.txt: the documents end to end
    STORE/card.json, card.html what went in, what was dropped and why

This is the one module that knows the layout: `write_part` writes a part of a source,
`create` makes a store of parts, `open_built` reads it.
Each store's own manifest has the hashes of its files, and the manifest above them has
theirs. What the card says, and how documents were chosen, is not known here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmx.core import errors
from lmx.data import store
from lmx.data.columns import column_files
from lmx.data.joining import join_stores
from lmx.data.remote import Blocks, read_bytes
from lmx.data.store import TokenStore
from lmx.inputs.example import Example
from lmx.inputs.tokenizers import Tokenizer

KIND = "mix"
SPLITS = ("train", "validation")
NAMES, TEXT = "names.txt", "text.txt"
CARD = ("card.json", "card.html")
SOURCE_NAME = re.compile(r"[a-z0-9_]+")

TEMPLATE = "tokenizer/chat_template.jinja"

Documents = Iterable["Document | tuple[str, str]"]
Card = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], str]]
Progress = Callable[[int], None]


class Document(NamedTuple):
    """What is written of a document; its name is of a source, such as 'file#17'."""

    name: str
    text: str
    example: Example | None = None
    columns: Sequence[bytes] = ()
    """What it carries along, for each name that `write_part` is given."""


class Content(NamedTuple):
    """A source of a mix: its rights, and what `write_part` wrote, in its order."""

    licence: str
    uses: tuple[str, ...]
    parts: Sequence[Path]


@dataclasses.dataclass(frozen=True)
class SourceStores:
    """One source of a mix: its rights, and its tokens in both splits."""

    name: str
    licence: str
    uses: tuple[str, ...]
    train: TokenStore
    validation: TokenStore
    validation_text: Path
    """The UTF-8 text of the validation documents, end to end."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A store that was opened: whole, and of one tokenizer."""

    directory: Path
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    sources: tuple[SourceStores, ...]
    """In the order of their names."""

    def names(self, split: str, source: str) -> list[str]:
        """Returns the name of each document of a split."""
        path = self.directory / split / source / NAMES
        try:
            content = read_bytes(path)
        except OSError as error:
            raise errors.DataError(
                f"{path} cannot be read ({error.strerror}); restore it, or build "
                f"{self.directory} anew"
            ) from error
        return content.decode("utf-8", "surrogateescape").split("\n")[:-1]


def write_part(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    train: Documents,
    validation: Documents,
    group: int = 0,
    columns: Sequence[str] = (),
) -> Path:
    """Writes a part of a source, both splits of it, and returns its directory.

    Documents, or (name, text), are read once. They have examples where `group`, which
    says how many successive examples belong together, is above 0. `columns` are the
    names of what they carry along.
    """
    for split, documents in zip(SPLITS, (train, validation), strict=True):
        noted: Iterator[Any] = _noted(directory / split, documents, columns)
        if group:
            store.write_examples(directory / split, noted, tokenizer, group=group)
        else:
            store.write_store(directory / split, noted, tokenizer)
    return directory


def create(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    sources: Mapping[str, Content],
    config: Mapping[str, Any],
    card: Card,
    chat_template: str | None = None,
    progress: Progress = lambda done: None,
) -> None:
    """Writes a store, which is at `directory` when it is whole and not before.

    How sources were cut into parts does not change it.

    Args:
      directory: new; its parents are made.
      tokenizer: of all sources; it is saved with them.
      sources: by name, each of one part or more; written in the order of their names.
      config: JSON values that say how it was built.
      card: called with the counts, `manifest["sources"]`, for the JSON and HTML card.
      chat_template: what conversations were encoded with, if there were any.
      progress: called with the parts that were joined since.

    Raises:
      UserError: there is something at `directory`, or a source's name is no name.
      DataError: a part is not as it was written.
      StorageError: it cannot be written; nothing is left of it.
    """
    if os.path.lexists(directory):
        raise errors.UserError(
            f"{directory} is there already; choose another --out, or delete it"
        )
    for name in sources:
        if not SOURCE_NAME.fullmatch(name) or name in SPLITS:
            raise errors.UserError(
                f"source name {name!r} must be of a–z, 0–9 and _, and not the name of "
                "a split; rename it"
            )
    elsewhere = "choose another --out"
    with store.atomic_directory(directory, elsewhere=elsewhere) as partial:
        tokenizer.save(partial / "tokenizer")
        if chat_template is not None:
            _write(partial / TEMPLATE, chat_template)
        counts: dict[str, dict[str, Any]] = {}
        for name, content in sorted(sources.items()):
            counts[name] = _join(partial, name, content)
            progress(len(content.parts))
        content_json, html = card(counts)
        _write(partial / CARD[0], json.dumps(content_json, indent=2) + "\n")
        _write(partial / CARD[1], html)
        manifest = {
            "kind": KIND,
            "tokenizer": tokenizer.fingerprint,
            "pad_id": tokenizer.pad_id,
            "config": dict(config),
            "sources": counts,
        }
        files = _files(partial, counts)
        files += [] if chat_template is None else [TEMPLATE]
        store.write_manifest(partial, manifest, files=files)


def is_built(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is meant as a built store, be it whole or damaged."""
    path = Path(path)
    if all((path / name).is_dir() for name in ("tokenizer", *SPLITS)):
        return True
    try:
        return json.loads((path / "manifest.json").read_text("utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_built(directory: str | os.PathLike[str]) -> Built:
    """Opens a store; raises a `DataError` that names the file that is not as it was."""
    directory = Path(directory)
    manifest = store.read_manifest(directory)
    remedy = f"restore it, or build {directory} anew"
    try:
        if manifest["kind"] != KIND:
            raise errors.DataError(
                f"{directory}/manifest.json is of kind {manifest['kind']!r}, not "
                f"{KIND!r}; give the folder that `lmx data build` wrote"
            )
        counts = manifest["sources"]
        for name in _files(directory, counts):
            if name not in manifest["files"]:
                raise errors.DataError(
                    f"{directory}/manifest.json does not name {name}; {remedy}"
                )
        tokenizer, blocks = Tokenizer.load(directory / "tokenizer"), Blocks()
        sources = tuple(
            SourceStores(
                name=name,
                licence=str(about["licence"]),
                uses=tuple(about["uses"]),
                train=_open_split(directory / "train" / name, tokenizer, about, blocks),
                validation=_open_split(
                    directory / "validation" / name, tokenizer, about, blocks
                ),
                validation_text=directory / "validation" / name / TEXT,
            )
            for name, about in sorted(counts.items())
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.DataError(
            f"{directory}/manifest.json is not of a built store ({error}); {remedy}"
        ) from error
    if not sources:
        raise errors.DataError(f"{directory} has no sources; {remedy}")
    return Built(directory, tokenizer, manifest["config"], sources)


def tokens_digest(sources: Sequence[SourceStores]) -> str:
    """Returns what tells the training tokens of sources from others.

    That of a lone source is the sha256 of its tokens.
    """
    if len(sources) == 1:
        return sources[0].train.digest
    content = json.dumps([[source.name, source.train.digest] for source in sources])
    return hashlib.sha256(content.encode()).hexdigest()


def _join(directory: Path, name: str, content: Content) -> dict[str, Any]:
    """Writes both splits of a source; returns its rights and counts."""
    about: dict[str, Any] = {"licence": content.licence, "uses": list(content.uses)}
    for split in SPLITS:
        parts = [part / split for part in content.parts]
        found = join_stores(directory / split / name, parts)
        about[split] = {
            "documents": found["documents"],
            "tokens": found["tokens"],
            "bytes": found["source_bytes"],
        }
    return about


def _noted(
    directory: Path, documents: Documents, columns: Sequence[str]
) -> Iterator[str | Example]:
    """Yields what is encoded and writes the files beside the tokens while it passes."""
    with_text = directory.name == "validation"
    with (
        open(directory / NAMES, "wb") as names,
        open(directory / TEXT if with_text else os.devnull, "wb") as copy,
        column_files(directory, columns) as add,
    ):
        for document in itertools.starmap(Document, documents):
            line = document.name.replace("\r", "␍").replace("\n", "␊")
            names.write(line.encode("utf-8", "surrogateescape") + b"\n")
            copy.write(document.text.encode())
            add(document.columns)
            example = document.example
            yield document.text if example is None else example


def _files(directory: Path, sources: Iterable[str]) -> list[str]:
    """Returns what the manifest of a store has the hashes of, relative to it."""
    stores = [f"{split}/{name}" for name in sorted(sources) for split in SPLITS]
    for name in sources:
        if not SOURCE_NAME.fullmatch(name):
            raise errors.DataError(
                f"{directory}/manifest.json names a source {name!r}; a name is of "
                "a–z, 0–9 and _: build it anew"
            )
    return [
        *CARD,
        "tokenizer/tokenizer.json",
        "tokenizer/meta.json",
        *(f"{path}/manifest.json" for path in stores),
    ]


def _open_split(
    directory: Path, tokenizer: Tokenizer, about: Mapping[str, Any], blocks: Blocks
) -> TokenStore:
    """Opens a split of a source and holds it against what the store says of it."""
    found = TokenStore.open(directory, blocks=blocks)
    if found.fingerprint != tokenizer.fingerprint:
        raise errors.DataError(
            f"{directory} was made with another tokenizer ({found.fingerprint[:12]}) "
            f"than the store's ({tokenizer.fingerprint[:12]}); build the store anew"
        )
    expected = about[directory.parent.name]
    counts = {
        "documents": found.num_documents,
        "tokens": found.num_tokens,
        "bytes": found.source_bytes,
    }
    if counts != expected:
        raise errors.DataError(
            f"{directory} has {counts}, and the store says {expected}; build the "
            "store anew"
        )
    return found


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="\n")
