"""The command `lmx tokenizer train`: text in, a saved tokenizer out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lmx.core.errors import DONE, UserError
from lmx.run.arguments import Parser

EXAMPLE = """kinds:
  byte     the 256 bytes                           exact, no training
  bpe      merges of bytes that occur together     exact
  unigram  the most probable pieces of bytes       exact
  word     whole words; rare ones become <|unk|>
  char     characters; rare ones become <|unk|>

A share of the documents is held out by the hash of their text, as training does with
data.validation_fraction: what a model is judged on is not learned from here either.

example:
  lmx tokenizer train --kind=bpe --vocab_size=4096 --text=docs/ --out=runs/bpe
  lmx tokenizer train --kind=unigram --text=news.jsonl.gz --text_field=body --out=runs/u
  lmx train --config=experiments/quickstart.py --config.data.tokenizer=runs/bpe
"""


def main(argv: list[str]) -> int:
    """Parses the command line, trains, saves, and returns the exit code."""
    options = parser().parse_args(argv)
    out = Path(options.out)
    if (out / "tokenizer.json").exists():
        raise UserError(f"--out={out} holds a tokenizer already; choose a new folder")

    from lmx.evaluate.tokenizer_metrics import TokenizerMeter, text_size
    from lmx.inputs.tokenizers import train_tokenizer
    from lmx.run.tokenizer_text import TextOptions, check_share, read_texts

    share = check_share(options.held_out)
    text = TextOptions(options.text, options.text_field, share, own_split=True)
    with tempfile.TemporaryDirectory(prefix="lmx-tokenizer-") as folder:
        texts = read_texts(text, Path(folder))
        tokenizer = train_tokenizer(options.kind, texts.training(), options.vocab_size)
        size = texts.train.size
    tokenizer.save(out)
    judged = [text for some in texts.held_out.values() for text in some]
    meter = TokenizerMeter(tokenizer)
    found = meter.measure(meter.counts(judged), text_size(judged))
    print(f"kind            {tokenizer.kind}, trained on {size:,} bytes")
    print(f"vocabulary      {tokenizer.vocab_size:,}")
    print(
        f"bytes per token {found.bytes_per_token:.3f}, on {found.size.documents:,} "
        f"held-out documents ({found.size.bytes:,} bytes, {found.tokens:,} tokens)"
    )
    if tokenizer.unk_id is not None:
        print(f"unknown         {found.unknown_share:.2%} of tokens")
    if tokenizer.kind != "byte" and tokenizer.vocab_size < options.vocab_size:
        print(
            f"                (the text has no more to learn than that; "
            f"--vocab_size={options.vocab_size})"
        )
    print(f"written:        {out} (fingerprint {tokenizer.fingerprint[:12]})")
    print(f"next:           lmx train --config=… --config.data.tokenizer={out}")
    return DONE


def parser() -> Parser:
    """Returns the parser of `lmx tokenizer train`."""
    parser = Parser(
        prog="lmx tokenizer train",
        description="Learn a tokenizer from text and save it.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("--kind", required=True, help="byte, char, word, bpe or unigram")
    add(
        "--vocab_size",
        "--vocab-size",
        type=int,
        default=4096,
        help="entries, special tokens included (default 4096)",
    )
    add_text(parser)
    add("--out", required=True, metavar="DIR", help="a new folder for the tokenizer")
    return parser


def add_text(parser: Parser) -> None:
    """Adds the options that say which text is read and how much is held out."""
    add = parser.add_argument
    add(
        "--text",
        required=True,
        metavar="PATH",
        help="a folder, a text, .jsonl(.gz) or .parquet file, or a TFDS name",
    )
    add(
        "--text_field",
        "--text-field",
        default="text",
        help="field of records that holds the text (default text)",
    )
    add(
        "--held_out",
        "--held-out",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the text that is not trained on but measured (default 0.05)",
    )
