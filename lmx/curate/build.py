"""From a build's config to a store of tokens: the story of `lmx data build`.

    rights     what the policy forbids is refused before anything is read
    clean      each shard of each source: read, normalise, mask, filter
    exact      documents that say the same: the preferred source keeps its own
    near       documents that nearly do
    repeats    passages that an earlier document holds, where the config cuts them
    tokenizer  trained on what is kept, or read
    tokens     each piece of what is kept, as a part of its source's store
    store      the parts of each source joined, and the card

Every stage leaves its files in a folder beside the store, so a build that was killed
goes on where it was. The folder's name holds the hash of the config and of the listing
of the sources: another config, or other files, is another build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from lmx.core.errors import DataError, UserError, pick
from lmx.core.workdir import claim, storage_error, sync_directory
from lmx.curate import (
    card,
    clean,
    duplicates,
    encoding,
    keys,
    records,
    repeats,
    rights,
    robots,
)
from lmx.curate.clean import Cleaner, Shard
from lmx.curate.config import BuildConfig, build_config, preferred
from lmx.curate.filters import make_filter
from lmx.curate.kept import Kept, Piece, pieces
from lmx.curate.masking import MASKS
from lmx.curate.runner import Runner
from lmx.data import built, places
from lmx.data.store import read_manifest
from lmx.inputs import tokenizers
from lmx.inputs.tokenizers import Tokenizer

REVISION = 4  # of what the same config and files give
FOLDERS = (
    "robots",
    "clean",
    "exact",
    "signatures",
    "keys",
    "near",
    "windows",
    "held",
    "cuts",
    "tokens",
)
TRAINING_BYTES = 512 << 20  # of text that a tokenizer is trained on

Stage = Callable[[str, int], Callable[[int], None]]
"""Told of a stage's name and its items; returns what is called after each."""


@dataclasses.dataclass(frozen=True)
class Building:
    """A build under way: its folder, and who does the work."""

    config: BuildConfig
    shards: Sequence[Shard]
    folder: Path
    runner: Runner
    stage: Stage

    def run(
        self,
        name: str,
        work: Callable[..., None],
        items: Sequence[Any],
        **settings: Any,
    ) -> None:
        """Does a stage: `work` on every item, in the folder of the build."""
        task = functools.partial(work, folder=self.folder, **settings)
        self.runner.run(task, items, advance=self.stage(name, len(items)))


def build(config: BuildConfig, out: Path, *, runner: Runner, stage: Stage) -> bool:
    """Builds the store `out`, and returns whether there was anything left to build.

    Raises a `DataError` for what is wrong with a source or its rights, a `UserError`
    where something else is at `out`, a `StorageError` where it cannot be written.
    """
    place = out.parent / f".{out.name}.building"
    there = UserError(f"{out} is there already; choose another --out, or delete it")
    if os.path.lexists(out) and not place.exists():
        raise there
    rights.check(config)
    check_parts(config)
    evaluations = {
        name: {"texts": ngrams.texts, "too short": ngrams.skipped}
        for name, ngrams in Cleaner.of(config).leaks.items()
    }
    shards = list_shards(config)
    folder = place / _key(config, shards)
    with claim(place, option="--out"), contextlib.closing(runner):
        if done := os.path.lexists(out):
            if not _is_of(out, folder):
                raise there
        else:
            try:
                for name in FOLDERS:
                    (folder / name).mkdir(parents=True, exist_ok=True)
                building = Building(config, shards, folder, runner, stage)
                if not (folder / "store").exists():
                    make_store(building, evaluations)
                publish(folder, out)
            except OSError as error:
                raise storage_error(
                    error, action="build", path=out, option="--out"
                ) from error
        shutil.rmtree(place, ignore_errors=True)  # and of builds that were given up
    return not done


def make_store(building: Building, evaluations: Mapping[str, Any]) -> None:
    """Does all stages that are not done; the store is then in the build's folder."""
    config, shards, folder = building.config, building.shards, building.folder
    archives = [shard for shard in shards if robots.has_archives(shard.entries)]
    if config.crawlers and archives:
        building.run("robots.txt", _find_robots, archives)
    building.run("clean", _clean, shards, config=config)
    tallies = card.tallies(shards, folder / "clean")
    check_damage(config, tallies)
    drop_duplicates(building)
    parts = pieces(shards, folder)
    find_repeats(building, parts)
    encode(building, parts, tallies)
    refusals = rights.honoured(config, tallies)
    facts = {"tallies": tallies, "evaluations": evaluations, "refusals": refusals}
    join(building, parts, facts)


def publish(folder: Path, out: Path) -> None:
    """Gives the store of a build's folder its name, so that it is known as its own."""
    seal = read_manifest(folder / "store")["seal"]
    with keys.whole(folder / "seal") as unfinished:
        unfinished.write_text(seal, "utf-8")
    os.rename(folder / "store", out)
    sync_directory(out.parent)


def _is_of(out: Path, folder: Path) -> bool:
    """Returns whether a store is whole and what the build of a folder published."""
    seal = folder / "seal"
    if not seal.exists() or not built.is_built(out):
        return False
    return read_manifest(built.open_built(out).directory)["seal"] == seal.read_text()


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
            why = why or "its files are empty"
            raise DataError(
                f"source {name} has no document left of {count:,} ({why}); loosen the "
                "filters or leave the source out"
            )


def drop_duplicates(building: Building) -> None:
    """Writes exact.npy and near.npy, int64 [n, 2]: a dropped document and the kept one.

    dropped.npy are those that go.
    """
    config, folder = building.config, building.folder
    numbers = [shard.number for shard in building.shards]
    rows = sum(_rows(number, folder) for number in numbers)
    exact = near = np.zeros((0, 2), np.int64)
    if "exact" in config.duplicates:
        parts = keys.parts_for(rows)
        building.run(
            "exact duplicates",
            duplicates.find_exact,
            range(parts),
            parts=parts,
            shards=numbers,
        )
        exact = duplicates.gather("exact", folder=folder)
    np.save(folder / "exact.npy", exact)
    if "near" in config.duplicates:
        similarity = config.near_similarity
        building.run("signatures", duplicates.sign, numbers, similarity=similarity)
        parts = keys.parts_for(rows * duplicates.bands(similarity))
        building.run(
            "near duplicates",
            duplicates.find_near,
            range(parts),
            parts=parts,
            similarity=similarity,
        )
        groups = duplicates.clusters(duplicates.gather("near", folder=folder))
        near = groups[groups[:, 0] != groups[:, 1]]
    np.save(folder / "near.npy", near)
    keys.drop(folder)


def find_repeats(building: Building, parts: Sequence[Piece]) -> None:
    """Cuts the passages that an earlier document holds, where they are to be cut."""
    config, folder = building.config, building.folder
    if (words := config.repeated_words) is None:
        return
    # An example is whole or not there, and what examples share are their prompts.
    texts = {name for name, one in config.sources.items() if one.format == "text"}
    mine = [piece for piece in parts if piece.source in texts]
    building.run("passages", repeats.hash_windows, mine, words=words)
    ranges = keys.parts_for(keys.count_keys(folder / "windows"))
    building.run("repeated passages", repeats.find_held, range(ranges), parts=ranges)
    building.run("cuts", repeats.cut_piece, mine, words=words)


def encode(
    building: Building, parts: Sequence[Piece], tallies: dict[str, dict[str, Any]]
) -> None:
    """Makes the tokenizer and the tokens; tells the tallies of what was no example."""
    config, folder = building.config, building.folder
    kept = Kept(folder, validation_fraction=config.validation_fraction)
    every = max(1, -(-_size(tallies) // TRAINING_BYTES))
    advance = building.stage("tokenizer", 1)
    encoding.make_tokenizer(
        config, kept.texts(parts, held_out=False, every=every), folder
    )
    advance(1)
    building.run("tokens", encoding.encode_piece, parts, config=config)
    encoded = card.add_up(
        (piece.source, folder / "tokens" / piece.stem / encoding.TALLY)
        for piece in parts
    )
    for name, tally in encoded.items():
        encoding.check_examples(name, tally, bad_records=config.bad_records)
        tallies[name]["dropped"].update(tally["dropped"])


def join(building: Building, parts: Sequence[Piece], facts: Mapping[str, Any]) -> None:
    """Writes the store, of the parts of each source, with its card."""
    config, folder = building.config, building.folder
    kept = Kept(folder, validation_fraction=config.validation_fraction)
    every = max(1, _size(facts["tallies"]) // card.SAMPLE_BYTES)
    tokenizer, template = encoding.read_tokenizer(folder)
    folders: dict[str, list[Path]] = {name: [] for name in config.sources}
    for piece in parts:
        folders[piece.source].append(folder / "tokens" / piece.stem)
    built.create(
        folder / "store",
        tokenizer,
        sources={
            name: built.Content(source.licence, source.uses, folders[name])
            for name, source in config.sources.items()
        },
        config=dataclasses.asdict(config),
        card=functools.partial(
            card.make,
            config=config,
            facts=facts,
            duplicates=card.count_duplicates(building.shards, folder),
            cuts=repeats.count_cuts(parts, folder),
            sample=list(kept.texts(parts, every=every)),
        ),
        chat_template=template,
        progress=building.stage("store", len(parts)),
    )


def _size(tallies: Mapping[str, Any]) -> int:
    """Returns the bytes of clean text."""
    return sum(tally["counts"]["bytes_out"] for tally in tallies.values())


def _find_robots(shard: Shard, *, folder: Path) -> None:
    robots.gather(shard.entries, folder / "robots" / f"{shard.stem}.json")


def _clean(shard: Shard, *, config: BuildConfig, folder: Path) -> None:
    source = config.sources[shard.source]
    # The folder's name holds what the lists say: another build may be of this process.
    cleaner = _cleaner(_json(config), str(folder))
    clean.clean(shard, source, cleaner, folder=folder / "clean")


@functools.lru_cache(maxsize=1)
def _cleaner(content: str, folder: str) -> Cleaner:
    """Makes the cleaner of a build once in a process: it may have read long lists."""
    return Cleaner.of(build_config(json.loads(content)), Path(folder) / "robots")


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
    lists = [named]
    lists += map(_stamp, (config.removals, config.optouts, config.robots))
    if config.tokenizer not in tokenizers.KINDS:
        lists.append(_stamp(config.tokenizer))
    lists += [_stamp(s["path"]) for s in config.filters.values() if "path" in s]
    lists.append([encoding.template_of(config)])
    lists += [_stamp(each.path) for each in config.evaluations.values()]
    content = json.dumps([REVISION, _json(config), listing, lists])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamp(path: str | None) -> list[Any]:
    """Returns what changes when the files at a path do; nothing where there is none."""
    found = places.find(path) if path else None
    return [entry[1:] for entry in found.entries] if found else []


def _json(config: BuildConfig) -> str:
    return json.dumps(dataclasses.asdict(config))
