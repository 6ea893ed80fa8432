"""From a build's config to a store of tokens: the story of `lmx data build`.

    rights    what the policy forbids is refused before anything is read
    clean     each shard of each source: read, normalise, mask, filter
    exact     documents that say the same: the preferred source keeps its own
    near      documents that nearly do
    repeats   passages that an earlier document holds, where the config cuts them
    tokenize  a tokenizer of what is kept, then the store and its card

Every stage leaves its files in a folder beside the store, so a build that was killed
goes on where it was. The folder's name holds the hash of the config and of the listing
of the sources: another config, or other files, is another build.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from lmx.core.errors import DataError, UserError, pick
from lmx.core.workdir import claim, storage_error
from lmx.curate import card, clean, duplicates, keys, records, repeats, rights
from lmx.curate.clean import Cleaner, Shard
from lmx.curate.config import BuildConfig, SourceConfig, build_config, preferred
from lmx.curate.encoding import Examples
from lmx.curate.filters import make_filter
from lmx.curate.kept import Kept
from lmx.curate.masking import MASKS
from lmx.curate.runner import Runner
from lmx.data import built, places
from lmx.inputs import tokenizers
from lmx.inputs.examples import FORMATS, chat_template
from lmx.inputs.tokenizers import Tokenizer

REVISION = 2  # of what the same config and files give
FOLDERS = ("clean", "exact", "signatures", "keys", "near", "windows", "held")
TRAINING_BYTES = 512 << 20  # of text that a tokenizer is trained on

Stage = Callable[[str, int], Callable[[int], None]]
"""Told of a stage's name and its items; returns what is called after each."""


def build(config: BuildConfig, out: Path, *, runner: Runner, stage: Stage) -> None:
    """Builds the store `out`.

    Raises a `DataError` for what is wrong with a source or its rights, a `UserError`
    where `out` is there already, a `StorageError` where it cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} is there already; choose another --out, or delete it")
    rights.check(config)
    check_parts(config)
    evaluations = {
        name: {"texts": ngrams.texts, "too short": ngrams.skipped}
        for name, ngrams in Cleaner.of(config).leaks.items()
    }
    shards = list_shards(config)
    place = out.parent / f".{out.name}.building"
    folder = place / _key(config, shards)
    with claim(place, option="--out"):
        try:
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            work = functools.partial(_clean, config=config, folder=folder / "clean")
            runner.run(work, shards, advance=stage("clean", len(shards)))
            tallies = card.tallies(shards, folder / "clean")
            check_damage(config, tallies)
            drop_duplicates(config, shards, folder, runner=runner, stage=stage)
            find_repeats(config, shards, folder, runner=runner, stage=stage)
            facts = {"tallies": tallies, "evaluations": evaluations}
            write(config, shards, folder, out, facts=facts, stage=stage)
        except OSError as error:
            raise storage_error(error, action="build", path=out) from error
        shutil.rmtree(place, ignore_errors=True)  # and of builds that were given up


def check_parts(config: BuildConfig) -> None:
    """Raises a `UserError` for an unknown filter, mask or setting, before any work."""
    for name in config.masks:
        pick(MASKS, name, "mask")
    for name, settings in config.filters.items():
        judge = make_filter(name, settings)
        try:
            judge("A text of a few words, to see whether the settings serve.")
        except TypeError as error:
            raise UserError(f"filters.{name}: {settings} ({error})") from error
    if config.tokenizer not in tokenizers.KINDS:
        Tokenizer.load(config.tokenizer)


def list_shards(config: BuildConfig) -> list[Shard]:
    """Returns the shards of all sources, numbered in the order of preference."""
    shards: list[Shard] = []
    for name in preferred(config):
        source = config.sources[name]
        records.check_template(source.text, f"sources.{name}.text")
        found = records.list_source(name, source)
        if found is None:
            if source.format != "text":
                raise DataError(
                    f"sources.{name}.path={source.path!r} does not exist, and only "
                    "texts are read by name; give a file of records"
                )
            records.open_named(source.path, source.text)
            shards.append(Shard(len(shards), name, [], True, source.path))
            continue
        groups = [found.entries]
        if source.max_documents is None:
            groups = records.cut(found.entries, records.SHARD_BYTES)
        over = found.passed_over  # told of by the first shard
        for group in groups:
            shards.append(
                Shard(len(shards), name, group, not found.single, passed_over=over)
            )
            over = []
    return shards


def check_damage(config: BuildConfig, tallies: dict[str, dict[str, Any]]) -> None:
    """Raises a `DataError` for a source with too many damaged records, or no text."""
    for name, tally in tallies.items():
        damaged = tally["dropped"].get("damaged")
        count = tally["counts"]["records"]
        if damaged and damaged["documents"] > config.bad_records * count:
            first = "; ".join(f"{e['name']}: {e['why']}" for e in damaged["examples"])
            raise DataError(
                f"source {name}: {damaged['documents']:,} of {count:,} records are "
                f"damaged, more than bad_records={config.bad_records:.2%}, such as "
                f"{first}. Mend them, or raise bad_records."
            )
        if not tally["counts"]["documents_out"]:
            why = ", ".join(
                f"{r} {d['documents']:,}" for r, d in tally["dropped"].items()
            )
            raise DataError(
                f"source {name} has no document left of {count:,} ({why}); loosen the "
                "filters or leave the source out"
            )


def drop_duplicates(
    config: BuildConfig,
    shards: Sequence[Shard],
    folder: Path,
    *,
    runner: Runner,
    stage: Stage,
) -> None:
    """Writes exact.npy and near.npy: [n, 2], a dropped document and the one kept."""
    numbers = [shard.number for shard in shards]
    rows = sum(_rows(number, folder) for number in numbers)
    exact = np.zeros((0, 2), np.int64)
    if "exact" in config.duplicates:
        parts = keys.parts_for(rows)
        work: Any = functools.partial(
            duplicates.find_exact, parts=parts, shards=numbers, folder=folder
        )
        runner.run(work, range(parts), advance=stage("exact duplicates", parts))
        exact = duplicates.gather("exact", folder=folder)
    np.save(folder / "exact.npy", exact)
    near = np.zeros((0, 2), np.int64)
    if "near" in config.duplicates:
        work = functools.partial(
            duplicates.sign, similarity=config.near_similarity, folder=folder
        )
        runner.run(work, numbers, advance=stage("signatures", len(numbers)))
        parts = keys.parts_for(rows * duplicates.bands(config.near_similarity))
        work = functools.partial(
            duplicates.find_near,
            parts=parts,
            similarity=config.near_similarity,
            folder=folder,
        )
        runner.run(work, range(parts), advance=stage("near duplicates", parts))
        groups = duplicates.clusters(duplicates.gather("near", folder=folder))
        near = groups[groups[:, 0] != groups[:, 1]]
    np.save(folder / "near.npy", near)


def find_repeats(
    config: BuildConfig,
    shards: Sequence[Shard],
    folder: Path,
    *,
    runner: Runner,
    stage: Stage,
) -> None:
    """Finds the passages that an earlier document holds, where they are to be cut."""
    if config.repeated_words is None:
        return
    # An example is whole or not there, and what examples share are their prompts.
    texts = [name for name, one in config.sources.items() if one.format == "text"]
    numbers = [shard.number for shard in shards if shard.source in texts]
    work: Any = functools.partial(
        repeats.hash_windows, words=config.repeated_words, folder=folder
    )
    runner.run(work, numbers, advance=stage("passages", len(numbers)))
    parts = keys.parts_for(keys.count_keys(folder / "windows"))
    work = functools.partial(repeats.find_held, parts=parts, folder=folder)
    runner.run(work, range(parts), advance=stage("repeated passages", parts))


def write(
    config: BuildConfig,
    shards: Sequence[Shard],
    folder: Path,
    out: Path,
    *,
    facts: dict[str, Any],
    stage: Stage,
) -> None:
    """Trains the tokenizer and writes the store with its card, which says the facts."""
    tallies = facts["tallies"]
    cuts: dict[str, Counter[str]] = {name: Counter() for name in config.sources}
    kept = Kept(
        shards,
        folder,
        validation_fraction=config.validation_fraction,
        repeated_words=config.repeated_words,
    )
    size = sum(tally["counts"]["bytes_out"] for tally in tallies.values())
    every = max(1, -(-size // TRAINING_BYTES))
    advance = stage("tokenizer", 1)
    tokenizer = tokenizer_of(config, kept.texts(held_out=False, every=every))
    advance(1)
    encoded, done = stage("tokens", size), Counter[tuple[str, str]]()

    def progress(split: str, source: str, count: int) -> None:
        encoded(count - done[split, source])
        done[split, source] = count

    def finish(counts: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        for name, one in examples.items():
            one.settle(name, tallies[name], bad_records=config.bad_records)
        return card.make(
            counts,
            config=config,
            facts=facts,
            duplicates=card.count_duplicates(shards, folder),
            cuts=cuts,
            sample=list(kept.texts(every=max(1, size // card.SAMPLE_BYTES))),
        )

    with chat_template(tokenizer, template_of(config)) as template:
        examples = {
            name: Examples(form.encoder(tokenizer, template))
            for name, source in config.sources.items()
            if (form := FORMATS[source.format]) is not None
        }
        chats = any(
            form is not None and form.messages
            for source in config.sources.values()
            for form in [FORMATS[source.format]]
        )
        built.create(
            out,
            tokenizer,
            sources={
                name: _content(name, source, kept, examples.get(name), cuts[name])
                for name, source in config.sources.items()
            },
            config=dataclasses.asdict(config),
            card=finish,
            chat_template=template.source if chats else None,
            progress=progress,
        )


def _content(
    name: str,
    source: SourceConfig,
    kept: Kept,
    examples: Examples | None,
    cuts: Counter[str],
) -> built.Content:
    def documents(held_out: bool) -> built.Documents:
        if examples is None:
            return kept.documents(name, held_out=held_out, cuts=cuts)
        return examples.of(kept.records(name, held_out=held_out))

    return built.Content(
        licence=source.licence,
        uses=source.uses,
        train=documents(False),
        validation=documents(True),
        group=form.group if (form := FORMATS[source.format]) else 0,
    )


def tokenizer_of(config: BuildConfig, texts: Iterator[str]) -> Tokenizer:
    """Returns the tokenizer that the config names, trained on `texts` if it is new."""
    if config.tokenizer not in tokenizers.KINDS:
        return Tokenizer.load(config.tokenizer)
    forms = [FORMATS[source.format] for source in config.sources.values()]
    extra = dict.fromkeys(name for form in forms if form for name in form.specials)
    return tokenizers.train_tokenizer(
        config.tokenizer, texts, config.vocab_size, extra=[*extra]
    )


def template_of(config: BuildConfig) -> str | None:
    """Returns the chat template beside the config's tokenizer, if there is one."""
    if config.tokenizer in tokenizers.KINDS:
        return None
    place = Path(config.tokenizer).expanduser()
    file = (place if place.is_dir() else place.parent) / Path(built.TEMPLATE).name
    try:
        return file.read_text("utf-8") if file.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); mend it") from error


def _clean(shard: Shard, *, config: BuildConfig, folder: Path) -> None:
    source = config.sources[shard.source]
    # The folder's name holds what the lists say: another build may be of this process.
    cleaner = _cleaner(_json(config), str(folder))
    clean.clean(shard, source, cleaner, folder=folder)


@functools.lru_cache(maxsize=1)
def _cleaner(content: str, folder: str) -> Cleaner:
    """Makes the cleaner of a build once in a process: it may have read long lists."""
    del folder
    return Cleaner.of(build_config(json.loads(content)))


def _rows(shard: int, folder: Path) -> int:
    path = folder / "clean" / f"{shard:06d}.parquet"
    return pyarrow.parquet.read_metadata(path).num_rows


def _key(config: BuildConfig, shards: Sequence[Shard]) -> str:
    listing = [
        [s.source, s.whole_files, [e[1:] for e in s.entries], s.passed_over]
        for s in shards
    ]
    named = [
        records.open_named(s.name, config.sources[s.source].text)[0].identity
        for s in shards
        if s.name is not None
    ]
    lists = [named, _stamp(config.removals)]
    if config.tokenizer not in tokenizers.KINDS:
        lists.append(_stamp(config.tokenizer))
    lists += [_stamp(s["path"]) for s in config.filters.values() if "path" in s]
    lists.append([template_of(config)])
    lists += [_stamp(each.path) for each in config.evaluations.values()]
    content = json.dumps([REVISION, _json(config), listing, lists])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamp(path: str | None) -> list[Any]:
    """Returns what changes when the files at a path do; nothing where there is none."""
    found = places.find(path) if path else None
    return [entry[1:] for entry in found.entries] if found else []


def _json(config: BuildConfig) -> str:
    return json.dumps(dataclasses.asdict(config))
