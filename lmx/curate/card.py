"""The data card: what went into a store, what was left out, and why.

`make` gives it as JSON values and as one HTML page that needs no network. Counts come
from the shards' tallies; what no count holds (frequent phrases) from a sample.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from lmx.core.errors import UserError
from lmx.curate import card_page
from lmx.curate.clean import EXAMPLES, Shard
from lmx.curate.config import BuildConfig
from lmx.curate.keys import ROW_BITS, shard_and_row
from lmx.curate.language import detect

COUNTS = ("records", "documents_in", "documents_out", "bytes_in", "bytes_out")
SAMPLE_BYTES = 8 << 20  # of text, about, in which phrases are counted
SAMPLE_CHARACTERS = 20_000  # of a document
PHRASE_WORDS, PHRASES = 4, 20
SHOWN_CLUSTERS = 5
WORD = re.compile(r"\w+")


def tallies(shards: Sequence[Shard], folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the tally of each source: the sum over its shards."""
    found = add_up((shard.source, folder / f"{shard.stem}.json") for shard in shards)
    for tally in found.values():
        for key in COUNTS:
            tally["counts"].setdefault(key, 0)
    return found


def add_up(files: Iterable[tuple[str, Path]]) -> dict[str, dict[str, Any]]:
    """Returns the sum of the tallies of each source, read from its files in order."""
    found: dict[str, dict[str, Any]] = {}
    for source, file in files:
        new = json.loads(file.read_text("utf-8"))
        if source not in found:
            found[source] = new
            continue
        old = found[source]
        for key in ("counts", "masked", "lengths", "removed"):
            for name, count in new[key].items():
                old[key][name] = old[key].get(name, 0) + count
        for reason, entry in new["dropped"].items():
            into = old["dropped"].setdefault(
                reason, {"documents": 0, "bytes": 0, "examples": []}
            )
            for key in ("documents", "bytes"):
                into[key] += entry[key]
            into["examples"] = (into["examples"] + entry["examples"])[:EXAMPLES]
    return found


def count_duplicates(shards: Sequence[Shard], folder: Path) -> dict[str, Any]:
    """Returns, for 'exact' and 'near', the documents dropped of each source, whose
    copies were kept, and the largest groups with examples.
    """
    source_of = {shard.number: shard.source for shard in shards}
    found: dict[str, Any] = {}
    for kind in ("exact", "near"):
        pairs = np.load(folder / f"{kind}.npy")
        between = Counter(
            (source_of[int(a)], source_of[int(b)]) for a, b in pairs >> ROW_BITS
        )
        kept, sizes = np.unique(pairs[:, 1], return_counts=True)
        largest = np.lexsort((kept, -sizes))[:SHOWN_CLUSTERS]
        groups = []
        for index in largest:
            members = pairs[pairs[:, 1] == kept[index], 0][: EXAMPLES - 1]
            shown = [_document(int(n), folder) for n in (kept[index], *members)]
            groups.append({"documents": int(sizes[index]) + 1, "examples": shown})
        found[kind] = {
            "documents": len(pairs),
            "groups": len(kept),
            "between": [
                {"dropped": a, "kept": b, "documents": n}
                for (a, b), n in sorted(between.items())
            ],
            "largest": groups,
        }
    return found


def make(
    counts: Mapping[str, Any],
    *,
    config: BuildConfig,
    facts: Mapping[str, Any],
    duplicates: dict[str, Any],
    cuts: Mapping[str, Mapping[str, int]],
    sample: Sequence[str],
) -> tuple[dict[str, Any], str]:
    """Returns the card as JSON values and as a page.

    `counts` are what the store holds of each source: rights, and for each split its
    documents, tokens and bytes. `facts` are the tallies and the evaluations. `cuts` say
    what repeated passages cost each source; of the texts of `sample` languages and
    phrases are counted.
    """
    sources = {}
    for name, source in config.sources.items():
        sources[name] = {
            "path": source.path,
            "origin": source.origin,
            "licence": source.licence,
            "uses": list(source.uses),
            **facts["tallies"][name],
            "stored": {split: counts[name][split] for split in ("train", "validation")},
        }
    content = {
        "uses": list(config.uses),
        "sources": sources,
        "duplicates": duplicates,
        "evaluations": facts["evaluations"],
        "refusals": facts["refusals"],
        "repeats": {
            "words": config.repeated_words,
            "sources": {
                name: dict(count) for name, count in cuts.items() if any(count.values())
            },
        },
        "languages": languages(sample),
        "phrases": phrases(sample),
    }
    return content, card_page.page(content)


def languages(texts: Iterable[str]) -> list[list[Any]] | None:
    """Returns how many texts are in which language, or None without py3langid."""
    try:
        found = Counter(detect(text[:SAMPLE_CHARACTERS])[0] for text in texts)
    except UserError:  # the extra is not installed
        return None
    return [[name, n] for name, n in sorted(found.items(), key=lambda x: (-x[1], x))]


def phrases(texts: Iterable[str]) -> list[list[Any]]:
    """Returns the most frequent runs of words and in how many texts they are."""
    found: Counter[str] = Counter()
    for text in texts:
        words = WORD.findall(text[:SAMPLE_CHARACTERS].lower())
        found.update(
            {
                " ".join(words[i : i + PHRASE_WORDS])
                for i in range(len(words) - PHRASE_WORDS + 1)
            }
        )
    often = [(phrase, n) for phrase, n in found.items() if n > 1]
    return [[p, n] for p, n in sorted(often, key=lambda pair: (-pair[1], pair[0]))][
        :PHRASES
    ]


def _document(number: int, folder: Path) -> dict[str, str]:
    """Returns the name and the beginning of a document."""
    shard, row = shard_and_row(number)
    file = pyarrow.parquet.ParquetFile(folder / "clean" / f"{shard:06d}.parquet")
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            table = file.read_row_group(group, columns=["name", "text"]).slice(row, 1)
            name, text = (table.column(i)[0].as_py() for i in (0, 1))
            return {"name": name, "text": text[:300]}
        row -= rows
    raise AssertionError(f"shard {shard} has no such row")
