"""From the `data` section of a config to a tokenizer and two token stores, cached.

`prepare` reads the source once, holds documents out, trains the tokenizer, encodes, and
gives the whole its name when it is done; the second time it only opens it. A built
store is opened as it is. How batches come out of it is in `corpus`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmx.core import errors
from lmx.core.schema import DataConfig
from lmx.data import sources, store
from lmx.data.built import SourceStores, is_built, open_built
from lmx.data.corpus import Corpus
from lmx.data.mirror import opened_at
from lmx.data.spool import Spool
from lmx.data.store import TokenStore
from lmx.inputs import tokenizers
from lmx.inputs.tokenizers import Tokenizer

REVISION = 1  # of what is prepared from the same text and settings
TRAINING_BYTES = 512 << 20
REPORT_SECONDS = 5.0
UNSTATED = "not stated"  # the licence of text that came without a build

Report = Callable[[str], object]


def prepare(
    config: DataConfig,
    *,
    context_length: int,
    seed: int,
    steps: int,
    report: Report = print,
) -> Corpus:
    """Returns the tokens of `config`'s text: a store, the cache, or built into it.

    The cache key is the sha256 of the listing of the source (names, sizes, times) and
    the settings that decide the tokens, so changed text is prepared again. Only the
    order of rows depends on `seed` and `steps` and only their length on
    `context_length`. Raises a `DataError` for bad or too little text or a damaged
    store, a `UserError` for an impossible mixture, a `StorageError` where the cache
    cannot be written.
    """
    path = opened_at(config.path, cache_dir=cache_directory(config))
    there = is_built(path)
    found = _opened_store(config, path) if there else _prepared(config, report)
    corpus = Corpus(
        **found,
        config=config,
        context_length=context_length,
        seed=seed,
        steps=steps,
    )
    _check_length(corpus)
    corpus.train_batches()  # an impossible mixture is reported here
    return corpus


def _opened_store(config: DataConfig, path: str) -> dict[str, Any]:
    """Returns what a `Corpus` holds of a built store, which is opened at `path`."""
    store_ = open_built(path)
    if config.tokenizer not in tokenizers.KINDS:
        wanted = Tokenizer.load(config.tokenizer).fingerprint
        if wanted != store_.tokenizer.fingerprint:
            raise errors.DataError(
                f"{config.path} was built with another tokenizer "
                f"({store_.tokenizer.fingerprint[:12]}) than data.tokenizer="
                f"{config.tokenizer} ({wanted[:12]}); build the store with it, or "
                f"set data.tokenizer={path}/tokenizer"
            )
    summary: dict[str, Any] = {"source": str(config.path)}
    for split in ("train", "validation"):
        parts = [getattr(source, split) for source in store_.sources]
        summary[split] = {
            "documents": sum(part.num_documents for part in parts),
            "bytes": sum(part.source_bytes for part in parts),
            "tokens": sum(part.num_tokens for part in parts),
        }
    if not summary["validation"]["documents"]:
        raise errors.DataError(
            f"{config.path} has no validation documents; build it anew with a larger "
            "share held out"
        )
    if not any(source.train.num_targets for source in store_.sources):
        raise errors.DataError(
            f"no token of {config.path} has a loss: nothing is learned from it; build "
            "it anew with records of which something is"
        )
    return {
        "directory": store_.directory,
        "tokenizer": store_.tokenizer,
        "sources": store_.sources,
        "summary": summary,
    }


def _prepared(config: DataConfig, report: Report) -> dict[str, Any]:
    """Returns what a `Corpus` holds of text that is prepared into the cache."""
    cache_dir = cache_directory(config)
    source = sources.open_source(
        config.path, text_field=config.text_field, cache_dir=cache_dir
    )
    directory = cache_dir / "prepared" / _key(config, source)
    found = _open(directory, report, name=config.path)
    if found is None:
        _check_space(cache_dir, source)
        with store.atomic_directory(directory) as partial:
            _build(partial, config, source, report)
        found = _open(directory, report, name=config.path)
    if found is None:
        raise errors.StorageError(
            f"what was just written to {directory} reads back damaged; check the disk, "
            "or set data.cache_dir to another"
        )
    return found


def cache_directory(config: DataConfig) -> Path:
    """Returns where prepared data is kept: the config, $LMX_CACHE, or ~/.cache/lmx."""
    chosen = config.cache_dir or os.environ.get("LMX_CACHE")
    return Path(chosen or "~/.cache/lmx").expanduser().absolute()


def _key(config: DataConfig, source: sources.Source) -> str:
    chosen: Any = [config.tokenizer, config.vocab_size]
    if config.tokenizer not in tokenizers.KINDS:
        chosen = Tokenizer.load(config.tokenizer).fingerprint
    settings = [config.text_field, config.validation_fraction, config.max_documents]
    key = json.dumps([REVISION, store.FORMAT, source.identity, settings, chosen])
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _open(directory: Path, report: Report, *, name: str) -> dict[str, Any] | None:
    """Opens prepared data; None where there is none, or it was damaged and is gone."""
    if not directory.exists():
        return None
    try:
        summary = store.read_manifest(directory)["summary"]
        tokenizer = Tokenizer.load(directory / "tokenizer")
        train = TokenStore.open(directory / "train")
        validation = TokenStore.open(directory / "validation")
        if {train.fingerprint, validation.fingerprint} != {tokenizer.fingerprint}:
            raise errors.DataError(f"the tokenizer in {directory} is another's")
    except errors.DataError as error:
        report(f"cached data is damaged, preparing it again: {error}")
        shutil.rmtree(directory, ignore_errors=True)
        return None
    source = SourceStores(
        name=name,
        licence=UNSTATED,
        uses=(),
        train=train,
        validation=validation,
        validation_text=directory / "validation.txt",
    )
    return {
        "directory": directory,
        "tokenizer": tokenizer,
        "sources": (source,),
        "summary": summary,
    }


def _build(
    directory: Path, config: DataConfig, source: sources.Source, report: Report
) -> None:
    """Reads, splits, trains the tokenizer and encodes, all below `directory`."""
    began = time.monotonic()
    tally: Counter[str] = Counter()
    report(f"reading {source.name}")
    train, validation = _spool(directory, config, source, tally)
    tokenizer = _tokenizer(config, train, report)
    tokenizer.save(directory / "tokenizer")
    summary: dict[str, Any] = {"source": source.name}
    for name, spool in (("train", train), ("validation", validation)):
        progress = _Progress(report, f"encoding {name}", spool.size)
        part = directory / name
        store.write_store(part, spool.texts(), tokenizer, progress=progress)
        split = store.read_manifest(part)
        summary[name] = {
            "documents": split["documents"],
            "bytes": split["source_bytes"],
            "tokens": split["tokens"],
        }
    validation.move_text(directory / "validation.txt")
    train.remove()
    total = [
        summary["train"][k] + summary["validation"][k] for k in ("bytes", "tokens")
    ]
    summary |= {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(total[0] / total[1], 4),
        "duplicates_removed": tally["duplicates"],
        "files_skipped": tally["skipped"],
        "empty_skipped": tally["empty"],
        "seconds": round(time.monotonic() - began, 2),
    }
    store.write_manifest(directory, {"summary": summary})
    report(
        f"prepared {total[0] / 1e6:.1f} MB as {total[1]:,} tokens "
        f"({summary['bytes_per_token']:.2f} bytes each) in {summary['seconds']:.1f} s"
    )


def _spool(
    directory: Path, config: DataConfig, source: sources.Source, tally: Counter[str]
) -> tuple[Spool, Spool]:
    """Reads the source once into two files of text."""
    train, validation = (
        Spool(directory / "train.txt"),
        Spool(directory / "held_out.txt"),
    )
    documents = sources.read_documents(
        source,
        validation_fraction=config.validation_fraction,
        max_documents=config.max_documents,
        tally=tally,
    )
    nearest: tuple[bytes, int, str] | None = None
    with train, validation:
        for document in documents:
            if document.held_out:
                validation.append(document.text)
                continue
            candidate = (document.digest, len(train), document.text)
            if nearest is None or candidate[0] < nearest[0]:
                nearest = candidate
            train.append(document.text)
        if not len(validation) and nearest and len(train) > 1:
            # Few documents: the hash held none out, so the next in line is.
            train.drop(nearest[1])
            validation.append(nearest[2])
    left_out = ", ".join(
        f"{n} {name}" for name, n in tally.items() if n and name != "documents"
    )
    if not tally["documents"]:
        raise errors.DataError(
            f"{source.name} has no text"
            + (f" ({left_out})" if left_out else "")
            + "; set data.path to a source with some"
        )
    if not len(validation) or not len(train):
        raise errors.DataError(
            f"{source.name} has {tally['documents']} document(s), too few to hold one "
            "out for validation; add documents, or lower or raise "
            f"data.validation_fraction ({config.validation_fraction})"
        )
    return train, validation


def _tokenizer(config: DataConfig, train: Spool, report: Report) -> Tokenizer:
    if config.tokenizer not in tokenizers.KINDS:
        return Tokenizer.load(config.tokenizer)
    # Every n-th document, so that huge text does not need huge memory.
    every = 1 + train.size // TRAINING_BYTES
    if config.tokenizer != "byte":
        size = train.size / every / 1e6
        report(f"training a {config.tokenizer} tokenizer on {size:.1f} MB")
    return tokenizers.train_tokenizer(
        config.tokenizer, train.texts(every=every), config.vocab_size
    )


class _Progress:
    """Reports a share of the work every few seconds."""

    def __init__(self, report: Report, what: str, size: int):
        self._report, self._what, self._size = report, what, size
        self._next = time.monotonic() + REPORT_SECONDS

    def __call__(self, done: int) -> None:
        if time.monotonic() >= self._next:
            self._report(f"{self._what}: {done / max(1, self._size):.0%}")
            self._next = time.monotonic() + REPORT_SECONDS


def _check_space(cache_dir: Path, source: sources.Source) -> None:
    """Refuses to start what will not fit: the text, its tokens, and a gzip's growth."""
    need = 3 * source.size + (1 << 20)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
    except OSError as error:
        raise store.storage_error(cache_dir, error) from error
    if free < need:
        raise errors.StorageError(
            f"{cache_dir} has {free / 1e6:,.0f} MB free and preparing {source.name} "
            f"needs about {need / 1e6:,.0f} MB; free some space or set data.cache_dir "
            "(or $LMX_CACHE) to another folder"
        )


def _check_length(corpus: Corpus) -> None:
    tokens = corpus.summary["train"]["tokens"]
    if tokens <= corpus.context_length:
        raise errors.DataError(
            f"the training split has {tokens:,} tokens, fewer than "
            f"one row of {corpus.context_length} and its target; add text or lower "
            "model.context_length"
        )
