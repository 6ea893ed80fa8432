"""Documents and examples as tokens: the tokenizer of a build, then piece by piece.

Only here are the tokenizer and its chat template known, so a conversation that the
template refuses, or whose reply no token begins with, is first met here; it is counted,
and bounded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError, UserError
from lmx.curate.clean import Tally
from lmx.curate.config import BuildConfig
from lmx.curate.kept import Kept, Piece, Row
from lmx.data import built
from lmx.data.built import Document
from lmx.data.store import atomic_directory
from lmx.inputs import tokenizers
from lmx.inputs.chat_files import read_template
from lmx.inputs.example import Encoder
from lmx.inputs.examples import FORMATS, chat_template
from lmx.inputs.tokenizers import Tokenizer

REASON = "no example"
TALLY = "tally.json"
ELSEWHERE = "choose another --out"


def make_tokenizer(config: BuildConfig, texts: Iterable[str], folder: Path) -> None:
    """Writes tokenizer/, with the chat template where there are conversations.

    It is the one that the config names, or trained on `texts`.
    """
    done = folder / "tokenizer"
    if done.exists():
        return
    forms = [FORMATS[source.format] for source in config.sources.values()]
    if config.tokenizer in tokenizers.KINDS:
        extra = dict.fromkeys(name for form in forms if form for name in form.specials)
        tokenizer = tokenizers.train_tokenizer(
            config.tokenizer, texts, config.vocab_size, extra=[*extra]
        )
    else:
        tokenizer = Tokenizer.load(config.tokenizer)
    template = chat_template(tokenizer, template_of(config))
    for form in forms:
        if form is not None:
            form.encoder(tokenizer, template)  # raises where they do not fit
    with atomic_directory(done, elsewhere=ELSEWHERE) as unfinished:
        tokenizer.save(unfinished)
        if any(form is not None and form.messages for form in forms):
            file = unfinished / Path(built.TEMPLATE).name
            file.write_bytes(template.source.encode())


def read_tokenizer(folder: Path) -> tuple[Tokenizer, str | None]:
    """Returns the tokenizer of a build, and its chat template if it has one."""
    path = folder / built.TEMPLATE
    return _tokenizer(folder), path.read_bytes().decode() if path.exists() else None


def encode_piece(piece: Piece, *, config: BuildConfig, folder: Path) -> None:
    """Writes tokens/PIECE: the piece as a part of its source's store, and a tally."""
    done = folder / "tokens" / piece.stem
    if done.exists():
        return
    kept = Kept(folder, validation_fraction=config.validation_fraction)
    about = config.sources[piece.source]
    form = FORMATS[about.format]
    tally, rows = Tally(), kept.rows(piece)
    tokenizer, source = read_tokenizer(folder)
    splits: dict[bool, list[Document]] = {False: [], True: []}
    if form is None:
        for row in rows:
            document = Document(row.name, row.text, columns=row.columns)
            splits[row.held_out].append(document)
    else:
        with chat_template(tokenizer, source) as template:
            encode = form.encoder(tokenizer, template)
            for held_out, document in examples(rows, encode, tally):
                splits[held_out].append(document)
    with atomic_directory(done, elsewhere=ELSEWHERE) as part:
        built.write_part(
            part,
            tokenizer,
            train=splits[False],
            validation=splits[True],
            group=form.group if form else 0,
            columns=[*about.columns],
        )
        (part / TALLY).write_text(json.dumps(tally.to_json()), "utf-8")


def examples(
    rows: Iterable[Row], encode: Encoder, tally: Tally
) -> Iterator[tuple[bool, Document]]:
    """Yields examples, with whether they are held out; counts records that are none.

    The text of a record comes once, with the first of its examples.
    """
    for row in rows:
        assert row.fields is not None
        tally.counts["encoded"] += 1
        try:
            found = encode(json.loads(row.fields))
        except (DataError, UserError) as error:
            tally.drop(REASON, row.name, why=str(error), text=row.text)
            continue
        text = row.text
        for example in found:
            yield row.held_out, Document(row.name, text, example, row.columns)
            text = ""


def check_examples(name: str, tally: dict[str, Any], *, bad_records: float) -> None:
    """Raises a `DataError` where too few records of a source could be examples."""
    bad = tally["dropped"].get(REASON)
    if bad is None:
        return
    count = tally["counts"]["encoded"]
    if bad["documents"] < count and bad["documents"] <= bad_records * count:
        return
    first = "; ".join(f"{e['name']}: {e['why']}" for e in bad["examples"])
    raise DataError(
        f"source {name}: {bad['documents']:,} of {count:,} records cannot be examples, "
        f"more than bad_records={bad_records:.2%}, such as {first}. Mend them or the "
        "chat template, or raise bad_records."
    )


def template_of(config: BuildConfig) -> str | None:
    """Returns the chat template beside the config's tokenizer, if there is one."""
    if config.tokenizer in tokenizers.KINDS:
        return None
    place = Path(config.tokenizer).expanduser()
    return read_template(place if place.is_dir() else place.parent)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer of a build once in a process: it may be large."""
    return Tokenizer.load(folder / "tokenizer")
