"""The command `lmx embed`: texts in, one vector each out, or how alike they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_type_hints

import numpy as np

from lmx.core.errors import DONE, DataError, StorageError, UserError
from lmx.core.model_schema import ModelConfig
from lmx.run.arguments import Parser, add_step, read_whole, utf8

EXAMPLE = """example:
  lmx embed --workdir=runs/minilm --similarity "A cat sat." "A kitten rested." "Tax law"
  lmx embed --workdir=runs/minilm --file=texts.txt --output=vectors.npy
"""


def main(argv: list[str]) -> int:
    """Parses the command line, writes the vectors, returns the exit code."""
    options = parser().parse_args(argv)
    texts = read_texts(options)
    output = Path(options.output) if options.output else None
    if output is not None and output.suffix != ".npy":
        raise UserError(f"--output={output} must end in .npy")
    if output is not None and not output.parent.is_dir():  # before hours of work
        raise UserError(f"--output={output}: there is no folder {output.parent}")

    from lmx.api import load

    model = load(options.workdir, step=options.step)
    vectors = model.embed(texts, pooling=options.pooling)
    if output is not None:
        try:
            np.save(output, vectors)
        except OSError as error:
            raise StorageError(f"cannot write {output}: {error.strerror}") from error
        rows, width = vectors.shape
        print(f"written: {output} (float32, {rows} × {width})")
    if options.similarity:
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        for row in unit @ unit.T:
            print("  ".join(f"{value:6.3f}" for value in row))
    elif output is None:
        for text, vector in zip(texts, vectors, strict=True):
            values = [float(f"{value:.7g}") for value in vector]
            line = {"text": text, "embedding": values}
            print(json.dumps(line, ensure_ascii=False))
    return DONE


def parser() -> Parser:
    """Returns the parser of `lmx embed`."""
    parser = Parser(
        prog="lmx embed",
        description="Turn texts into vectors that lie close where meanings do.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("texts", nargs="*", type=utf8, metavar="TEXT", help="a text to embed")
    add(
        "--workdir",
        required=True,
        metavar="DIR",
        help="an imported encoder, any other model, or a published one",
    )
    add("--file", metavar="FILE", help="a text a line, a vector each; '-' is stdin")
    add("--output", metavar="FILE.npy", help="write the vectors instead of JSON lines")
    add("--similarity", action="store_true", help="print the matrix of cosines")
    add(
        "--pooling",
        choices=get_type_hints(ModelConfig)["pooling"].__args__,
        help="of hidden states (default: the model's own)",
    )
    add_step(parser)
    return parser


def read_texts(options) -> list[str]:
    """Returns the texts that the options name."""
    if bool(options.texts) == bool(options.file):
        raise UserError("give texts, or a file of them with --file=FILE")
    if not options.file:
        return options.texts
    whole = read_whole(options.file, "--file")
    if not whole.strip():
        raise DataError(f"--file={options.file} holds no text; write one a line")
    # Line n is vector n: a blank line counts, and only an encoder has a vector for it.
    return whole.removesuffix("\n").split("\n")
