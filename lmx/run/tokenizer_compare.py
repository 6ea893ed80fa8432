"""The command `lmx tokenizer compare`: several tokenizers on one held-out text."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmx.core.errors import DONE, UserError, pick
from lmx.run.arguments import Parser
from lmx.run.tokenizer_train import add_text

if TYPE_CHECKING:
    from lmx.evaluate.tokenizer_metrics import TokenizerMeasure
    from lmx.inputs.tokenizers import Tokenizer
    from lmx.run.equal_flops import EqualFlopsRun
    from lmx.run.tokenizer_text import TextOptions, Texts

EXAMPLE = """A TOKENIZER is one of
  KIND:SIZE   byte, char, word, bpe or unigram, trained here on the rest of the text
  PATH        a folder of lmx tokenizer train, a workdir, a Hugging Face folder, a
              tokenizer.json, a SentencePiece .model, a .tiktoken or a .gguf file
  NAME=PATH   the same, under another name

What is measured, all of it on text that is held out by a hash (whole documents; with
--by, single lines, so that each value has some on both sides):
  vocabulary    entries that text can become, special tokens apart
  bytes/token   UTF-8 bytes per token
  tokens/word   fertility; a word is a run of letters and digits, and in scripts
                without spaces between words (Chinese, Thai, …) a letter
  used          share of the vocabulary that occurs
  unknown       share of tokens that stand for text outside of the vocabulary
  part          share of tokens that are some bytes of a character (byte fallback)
  bits/byte     with --train_flops: of models trained with equal FLOPs; text behind
                unknown tokens counts 8 bits a byte

example:
  lmx tokenizer compare byte bpe:4096 unigram:4096 --text=docs/
  lmx tokenizer compare bpe:8192 small=model.gguf --text=udhr.jsonl.gz --by=lang \\
      --values=en,de,hi,zh,th --plot=languages.png --json=languages.json
  lmx tokenizer compare byte bpe:1024 bpe:8192 --text=docs/ --train_flops=1e13
"""
MOST_ROWS = 40


class Spec(NamedTuple):
    """What to call a tokenizer, and where it is or what to train."""

    name: str
    place: str = ""
    kind: str = ""
    size: int = 0


class Compared(NamedTuple):
    """One tokenizer and what was found."""

    name: str
    tokenizer: Tokenizer
    whole: TokenizerMeasure
    parts: dict[str, TokenizerMeasure]
    run: EqualFlopsRun | None = None


def main(argv: list[str]) -> int:
    """Parses the command line, compares, writes, and returns the exit code."""
    from lmx.inputs.tokenizers import train_tokenizer
    from lmx.interop.tokenizer_files import open_tokenizer
    from lmx.run.tokenizer_text import read_texts

    options, overrides = parser().parse_with_overrides(argv)
    specs = [parse_spec(spec) for spec in options.tokenizers]
    names = [spec.name for spec in specs]
    check_names(names)
    for path in (options.json, options.plot):
        if path and not Path(path).parent.is_dir():  # before hours of work
            raise UserError(f"{path}: there is no folder {Path(path).parent}")
    if overrides and options.train_flops is None:
        raise UserError(
            f"--config.{overrides[0][0]} is of the models that --train_flops trains; "
            "give that too"
        )
    text = text_options(options)
    # What is there already is opened first: a wrong path is known at once.
    opened = [None if spec.kind else open_tokenizer(spec.place) for spec in specs]

    with tempfile.TemporaryDirectory(prefix="lmx-tokenizer-") as temporary:
        folder = Path(temporary)
        texts = read_texts(text, folder)
        print(describe(text, texts), flush=True)
        tokenizers = [
            found or train_tokenizer(spec.kind, texts.training(), spec.size)
            for spec, found in zip(specs, opened, strict=True)
        ]
        compared = measure_all(names, tokenizers, texts)
        if options.train_flops is not None:
            compared = train_all(compared, texts, text, folder, options, overrides)
    write(compared, text, options)
    return DONE


def parser() -> Parser:
    """Returns the parser of `lmx tokenizer compare`."""
    parser = Parser(
        prog="lmx tokenizer compare",
        description="Compare tokenizers on held-out text.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("tokenizers", nargs="+", metavar="TOKENIZER", help="see below")
    add_text(parser)
    add("--by", metavar="FIELD", help="compare for each value of a field of records")
    add("--values", metavar="A,B,…", help="only these values of --by, in this order")
    add(
        "--split",
        choices=("documents", "lines"),
        help="what is held out (default: documents; lines with --by)",
    )
    add("--json", metavar="FILE", help="write all numbers")
    add("--plot", metavar="FILE.png", help="draw bytes/token and tokens/word")
    add(
        "--train_flops",
        "--train-flops",
        type=float,
        metavar="FLOPS",
        help="train a small model for each tokenizer with so many FLOPs, such as 1e13; "
        "--config.model.width=… and the like change the model",
    )
    add("--seed", type=int, default=0, help="of those models (default 0)")
    return parser


def parse_spec(spec: str) -> Spec:
    """Returns what one TOKENIZER of the command line asks for."""
    from lmx.inputs.tokenizers import KINDS

    exists = Path(spec).exists()
    kind, _, size = spec.partition(":")
    if kind in KINDS and not exists:
        if not size.isdecimal() and spec != "byte":
            raise UserError(
                f"{spec!r} names no size; give the entries of its vocabulary, such as "
                f"{kind}:4096"
            )
        return Spec(spec, kind=kind, size=int(size or 0))
    if size.isdecimal() and not exists:
        pick(dict.fromkeys(KINDS), kind, "kind of tokenizer")
    name, equals, path = spec.partition("=")
    if equals and not exists:
        return Spec(name, place=path)
    place = Path(spec)
    return Spec(place.stem if place.suffix else place.name, place=spec)


def check_names(names: Sequence[str]) -> None:
    """Raises a `UserError` where two tokenizers have one name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two tokenizers are called {name!r}; name one of them: NAME=PATH"
            )


def text_options(options: Any) -> TextOptions:
    """Returns the text that the options ask for."""
    from lmx.run.tokenizer_text import TextOptions, check_share

    values = tuple(value for value in (options.values or "").split(",") if value)
    if values and options.by is None:
        raise UserError("--values names values of a field; say which with --by=FIELD")
    return TextOptions(
        path=options.text,
        text_field=options.text_field,
        fraction=check_share(options.held_out),
        by=options.by,
        values=values,
        lines=(options.split or ("lines" if options.by else "documents")) == "lines",
    )


def measure_all(
    names: Sequence[str], tokenizers: Sequence[Tokenizer], texts: Texts
) -> list[Compared]:
    """Returns every tokenizer with its measures of the whole text and of each part."""
    from lmx.evaluate.tokenizer_metrics import TextSize, TokenizerMeter, text_size

    sizes = {value: text_size(part) for value, part in texts.held_out.items()}
    total = TextSize()
    for size in sizes.values():
        total = total.plus(size)
    compared = []
    for name, tokenizer in zip(names, tokenizers, strict=True):
        meter = TokenizerMeter(tokenizer)
        counts = {v: meter.counts(part) for v, part in texts.held_out.items()}
        parts = {v: meter.measure(counts[v], sizes[v]) for v in counts}
        whole = meter.measure(np.sum(list(counts.values()), axis=0), total)
        compared.append(Compared(name, tokenizer, whole, parts))
    return compared


def train_all(
    compared: Sequence[Compared],
    texts: Texts,
    text: TextOptions,
    folder: Path,
    options: Any,
    overrides: Sequence[tuple[str, str]],
) -> list[Compared]:
    """Returns the tokenizers with their models, trained one after the other."""
    from lmx.evaluate.tokenizer_metrics import TokenizerMeter
    from lmx.run.equal_flops import small_experiment, train_model, with_budget

    corpus = folder / "corpus.jsonl"
    texts.write_corpus(corpus)
    base = small_experiment(
        corpus, fraction=text.fraction, seed=options.seed, overrides=overrides
    )
    # All budgets before the first model: one that is too small is known at once.
    configs = [
        with_budget(base, one.tokenizer.vocab_size, options.train_flops)
        for one in compared
    ]
    done = []
    for number, (one, config) in enumerate(zip(compared, configs, strict=True)):
        print(f"training a model for {one.name}: {config.steps:,} steps", flush=True)
        counts = TokenizerMeter(one.tokenizer).counts(texts.train.texts())
        run = train_model(
            config,
            one.tokenizer,
            folder / str(number),
            measure=one.whole,
            train_tokens=int(counts.sum()) + 2 * len(texts.train),  # BOS and EOS
        )
        done.append(one._replace(run=run))
    return done


def write(compared: Sequence[Compared], text: TextOptions, options: Any) -> None:
    """Prints the tables and writes the files that were asked for."""
    from lmx.core.workdir import write_atomic
    from lmx.report import tokenizer_tables as tables

    rows = [(one.name, one.whole, one.run) for one in compared]
    print("\n" + tables.summary(rows))
    parts = {one.name: one.parts for one in compared}
    shown = shown_values(parts[compared[0].name], text.values)
    if text.by is not None:
        print("\n" + tables.by_value(parts, shown, by=text.by))
    if options.json:
        content = tables.as_json(rows, parts)
        settings = {
            "text": dataclasses.asdict(text),
            "train_flops": options.train_flops,
            "seed": options.seed,
        }
        write_atomic(
            options.json,
            json.dumps(settings | content, indent=2, ensure_ascii=False) + "\n",
        )
        print(f"written: {options.json}")
    if options.plot:
        tables.plot(parts, shown, options.plot)
        print(f"written: {options.plot}")


def shown_values(
    parts: dict[str, TokenizerMeasure], chosen: Sequence[str]
) -> list[str]:
    """Returns the values that tables show: the chosen, or those with the most text."""
    if chosen:
        return [value for value in chosen if value in parts]
    largest = sorted(parts, key=lambda v: -parts[v].size.bytes)[:MOST_ROWS]
    return sorted(largest)


def describe(text: TextOptions, texts: Texts) -> str:
    """Returns what is trained on and what is measured, in words."""
    from lmx.evaluate.tokenizer_metrics import text_size

    size = text_size(t for part in texts.held_out.values() for t in part)
    unit = "lines" if text.lines else "documents"
    missing = [v for v in text.values if v not in texts.held_out]
    told = (
        f"{text.path}: {len(texts.train):,} {unit} ({texts.train.size:,} bytes) to "
        f"train on; measured on {size.documents:,} others ({size.bytes:,} bytes, "
        f"{size.words:,} words)"
    )
    if missing:
        told += f"; nothing was held out of {', '.join(missing)}"
    return told
