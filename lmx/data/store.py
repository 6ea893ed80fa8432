"""Tokens on disk: one flat file, the start of every document, and a manifest.

A document is stored as BOS, its tokens, EOS. All but BOS are predicted, so the summed
loss over `source_bytes` is bits per byte with every byte, and the end, accounted for.
An example brings its own tokens and the weight of each in the loss; its first token is
context, as BOS is.

    tokens.bin     uint16 (uint32 for vocabularies over 65,536), little-endian
    offsets.npy    int64 [documents + 1]: where each document starts, then the end
    weights.bin    uint8, of examples only: the weight of each token as a target
    NAME.bin, .npy what documents carry along (`columns`), if they do
    manifest.json  counts, the tokenizer's fingerprint, size and sha256 of the other
                   files, and a seal: the sha256 of all that it says

Sizes are checked at every opening; hashes too where the files are small enough (64 MiB,
under 0.1 s), because a wrong bit in the data trains silently wrong. A store is written
once: `atomic_directory` gives it its name when it is whole. Rows are not known here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmx.core import errors
from lmx.data.columns import Column, open_columns
from lmx.data.remote import Blocks, Numbers, entry_of, numbers
from lmx.inputs.example import Example
from lmx.inputs.tokenizers import Tokenizer

FORMAT = 1
HASHED_BYTES = 64 << 20
BATCH_CHARACTERS = 1 << 20
STALE_SECONDS = 24 * 3600
CACHE_DIR = "set data.cache_dir (or $LMX_CACHE) to another folder"

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """The tokens of one split, read on demand."""

    tokens: Numbers
    """uint16 or uint32 [T], a memory map or a reader of a file that is elsewhere."""
    offsets: np.ndarray
    """int64 [documents + 1]."""
    source_bytes: int
    """UTF-8 bytes of the documents' text; of examples, of what has a loss."""
    fingerprint: str
    """Of the tokenizer that made it."""
    digest: str
    """sha256 of the tokens."""
    pad_id: int
    num_targets: int
    """How many tokens have a loss: of texts, all but the BOS of each document."""
    weights: Numbers | None = None
    """uint8 [T], the weight of each token in the loss; None is 1 for all but BOS."""
    group: int = 1
    """How many successive documents belong together: of preference pairs, two."""
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    """What each document carries along, by name."""

    @property
    def num_tokens(self) -> int:
        """Returns how many tokens there are, each document's BOS and EOS included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Returns how many documents there are."""
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of one document, BOS and EOS included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def column(self, name: str, document: int) -> bytes:
        """Returns what a document carries along under that name."""
        return errors.pick(self.columns, name, "column of this store").read(document)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, blocks: Blocks | None = None
    ) -> TokenStore:
        """Opens a store; raises a `DataError` where a file is missing or damaged.

        `blocks` remembers what was read of files that are elsewhere.
        """
        directory, blocks = Path(directory), blocks or Blocks()
        manifest = read_manifest(directory)
        hashes = {name: about["sha256"] for name, about in manifest["files"].items()}
        digest, weights = hashes["tokens.bin"], None
        if "weights.bin" in hashes:
            weights = numbers(directory / "weights.bin", "u1", blocks)
            both = digest + hashes["weights.bin"]
            digest = hashlib.sha256(both.encode()).hexdigest()
        plain = manifest["tokens"] - manifest["documents"]
        return cls(
            tokens=numbers(directory / "tokens.bin", manifest["dtype"], blocks),
            offsets=np.load(directory / "offsets.npy"),
            source_bytes=manifest["source_bytes"],
            fingerprint=manifest["tokenizer"],
            digest=digest,
            pad_id=manifest["pad_id"],
            num_targets=manifest.get("targets", plain),
            weights=weights,
            group=manifest.get("group", 1),
            columns=open_columns(directory, [*hashes], blocks),
        )


def write_store(
    directory: Path,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    progress: Progress = lambda done: None,
) -> None:
    """Encodes `texts` into `directory`, which is new and is the caller's to discard.

    `progress` is called with the source bytes done so far.
    """
    directory.mkdir(parents=True)
    documents = _documents(texts, tokenizer)
    manifest = _write_tokens(directory, documents, tokenizer, progress=progress)
    _write_about(directory, manifest, tokenizer)


def write_examples(
    directory: Path,
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    group: int = 1,
    progress: Progress = lambda done: None,
) -> None:
    """Writes examples, encoded with `tokenizer`, as `write_store` does texts.

    The weight of an example's first token is kept as 0, since nothing predicts it.
    `group` says how many successive examples belong together.
    """
    directory.mkdir(parents=True)
    targets = 0

    def documents() -> Iterator[_Document]:
        nonlocal targets
        for example in examples:
            weights = np.array(example.weights, np.uint8)
            weights[:1] = 0
            if len(example.ids) != len(weights):
                raise ValueError(
                    f"an example has {len(example.ids)} ids, {len(weights)} weights"
                )
            targets += int(np.count_nonzero(weights))
            file.write(weights.tobytes())
            yield _Document(example.ids, example.size)

    with open(directory / "weights.bin", "wb") as file:
        manifest = _write_tokens(directory, documents(), tokenizer, progress=progress)
        file.flush()
        os.fsync(file.fileno())
    if manifest["documents"] % group:
        raise ValueError(f"{manifest['documents']} examples are not groups of {group}")
    _write_about(directory, manifest | {"targets": targets, "group": group}, tokenizer)


class _Document(NamedTuple):
    """All tokens of a document, and the bytes that they stand for."""

    ids: Sequence[int]
    size: int


def _documents(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[_Document]:
    """Yields each text between BOS and EOS."""
    for batch in _batches(texts):
        for text, ids in zip(batch, _encode(tokenizer, batch), strict=True):
            document = [tokenizer.bos_id, *ids, tokenizer.eos_id]
            yield _Document(document, len(text.encode()))


def _write_tokens(
    directory: Path,
    documents: Iterable[_Document],
    tokenizer: Tokenizer,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Writes tokens.bin and offsets.npy and returns what the manifest says of them."""
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    ends = [0]
    done = reported = 0
    with open(directory / "tokens.bin", "wb") as file:
        for document in documents:
            file.write(np.asarray(document.ids, dtype).tobytes())
            ends.append(ends[-1] + len(document.ids))
            done += document.size
            if done - reported >= BATCH_CHARACTERS:
                progress(done)
                reported = done
        progress(done)
        file.flush()
        os.fsync(file.fileno())
    np.save(directory / "offsets.npy", np.asarray(ends, np.int64))
    return {
        "dtype": dtype,
        "tokens": ends[-1],
        "documents": len(ends) - 1,
        "source_bytes": done,
    }


def _write_about(
    directory: Path, counts: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    made_with = {"tokenizer": tokenizer.fingerprint, "pad_id": tokenizer.pad_id}
    write_manifest(directory, {**counts, **made_with})


def write_manifest(
    directory: Path, content: dict[str, Any], *, files: Iterable[str] | None = None
) -> None:
    """Writes manifest.json: `content`, and size and sha256 of `files`.

    Their names are relative to `directory`; None is each file beside the manifest.
    """
    if files is None:
        beside = (path.name for path in directory.iterdir() if path.is_file())
        files = sorted(name for name in beside if name != "manifest.json")
    paths = {name: directory / name for name in files}
    hashes = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in paths.items()
    }
    manifest = {"format": FORMAT, **content, "files": hashes}
    manifest["seal"] = _seal(manifest)
    with open(directory / "manifest.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a directory whose files are as it says.

    Raises a `DataError` that names the first file that is not.
    """
    remedy = f"delete {directory} and run again to build it anew"
    try:
        manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
        if manifest.get("seal", "") not in ("", _seal(manifest)):
            raise errors.DataError(
                f"{directory}/manifest.json is damaged or edited (its seal differs); "
                f"{remedy}"
            )
        if manifest["format"] != FORMAT:
            raise errors.DataError(
                f"{directory} has format {manifest['format']}, not {FORMAT}; {remedy}"
            )
        for name, expected in manifest["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise errors.DataError(
                    f"{directory}/manifest.json names {name!r}, which lies elsewhere; "
                    f"{remedy}"
                )
            path = directory / name
            away = None if path.exists() else entry_of(path)
            size = path.stat().st_size if away is None else away.size
            if size != expected["bytes"]:
                raise errors.DataError(
                    f"{path} has {size:,} bytes, not {expected['bytes']:,}; {remedy}"
                )
            hashed = away is None and size <= HASHED_BYTES
            if hashed and _sha256(path) != expected["sha256"]:
                raise errors.DataError(f"{path} is damaged (sha256 differs); {remedy}")
    except errors.DataError:
        raise
    except OSError as error:
        raise errors.DataError(
            f"{directory} holds no readable data ({error}); {remedy}"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
        raise errors.DataError(
            f"{directory} holds no readable data (manifest.json: {why!r}); {remedy}"
        ) from why
    return manifest


@contextlib.contextmanager
def atomic_directory(final: Path, *, elsewhere: str = CACHE_DIR) -> Iterator[Path]:
    """Yields an empty directory that becomes `final` when the block ends well.

    Where two processes build the same, the first to finish wins and the other's copy
    is discarded. After an error nothing is left. Raises a `StorageError` where it
    cannot be written, with `elsewhere` as what else to do about it.
    """
    partial = final.with_name(f".partial-{final.name}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        _remove_stale(final.parent)
        yield partial
        try:
            os.rename(partial, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        raise storage_error(final.parent, error, elsewhere=elsewhere) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def storage_error(
    directory: Path, error: OSError, *, elsewhere: str = CACHE_DIR
) -> errors.StorageError:
    """Returns what to tell the user when `directory` cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space or" if full else "make it writable or"
    return errors.StorageError(
        f"cannot write prepared data to {directory}: {error.strerror or error}; "
        f"{remedy} {elsewhere}. "
        "Nothing half-written was kept."
    )


def _remove_stale(parent: Path) -> None:
    """Removes what killed builds left behind; a day is longer than any build."""
    for path in parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Groups texts so that a batch is worth all cores and fits in memory."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Yields the ids of each text; a long one is encoded in parts, on several cores."""
    if tokenizer.kind == "foreign":  # its tokens may look across any cut
        yield from tokenizer.encode_batch(texts)
        return
    parts = [list(_parts(text)) for text in texts]
    encoded = iter(tokenizer.encode_batch([part for some in parts for part in some]))
    for some in parts:
        yield [index for _ in some for index in next(encoded)]


def _parts(text: str, size: int = BATCH_CHARACTERS // 4) -> Iterator[str]:
    """Cuts a text where no token of ours can span: between a line end and a letter."""
    start = 0
    while len(text) - start > size:
        cut = text.find("\n", start + size)
        while 0 <= cut < len(text) - 1 and not text[cut + 1].isalpha():
            cut = text.find("\n", cut + 1)
        if cut < 0 or cut == len(text) - 1:
            break
        yield text[start : cut + 1]
        start = cut + 1
    yield text[start:]


def _seal(manifest: dict[str, Any]) -> str:
    """Returns the sha256 of all that a manifest says."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
