"""The command `lmx generate`: prompts in, text out, streamed."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from lmx.core.errors import DONE, DataError, UserError
from lmx.run.arguments import (
    Parser,
    add_quantize,
    add_sampling,
    add_step,
    chosen_sampling,
    read_whole,
    utf8,
)

EXAMPLE = """example:
  lmx generate --workdir=runs/quickstart --prompt="def "
  lmx generate --workdir=runs/quickstart --prompts=prompts.txt --temperature=0 --json
"""


def main(argv: list[str]) -> int:
    """Parses the command line, writes the continuations, returns the exit code."""
    options, overrides = parser().parse_with_overrides(argv)
    if overrides:
        raise UserError(
            f"--config.{overrides[0][0]}: a trained model keeps its config; generate "
            "takes sampling options only"
        )
    prompts = read_prompts(options)

    from lmx.api import load, sampling_config

    sampling = chosen_sampling(options)
    sampling_config(sampling)  # a wrong value is reported before anything is loaded
    model = load(options.workdir, step=options.step, quantize=options.quantize)
    if options.prompts is None and not options.json:
        pieces = model.stream(prompts[0], **sampling)
        first = next(pieces, "")  # a prompt that is refused is not echoed
        sys.stdout.write(prompts[0])
        for piece in itertools.chain([first], pieces):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return DONE
    for prompt, text in zip(prompts, model.generate(prompts, **sampling), strict=True):
        if options.json:
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            print(f"{prompt}{text}\n{'─' * 72}")
    return DONE


def parser() -> Parser:
    """Returns the parser of `lmx generate`."""
    parser = Parser(
        prog="lmx generate",
        description="Continue prompts with a trained or imported model.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        metavar="DIR",
        help="a run, an imported model, or a published one",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt", type=utf8, help="the text to continue; '-' reads it from stdin"
    )
    prompt.add_argument(
        "--prompts",
        metavar="FILE",
        help="one prompt a line ('-' is stdin), or .jsonl with a 'prompt' field",
    )
    add_sampling(parser)
    add_quantize(parser)
    add_step(parser)
    add(
        "--json",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="one JSON object per prompt",
    )
    return parser


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Returns the prompts that the options name."""
    if options.prompt == "-":
        return [read_whole("-", "--prompt")]
    if options.prompt is not None:
        return [options.prompt]
    path = Path(options.prompts)
    whole = read_whole(options.prompts, "--prompts")
    lines = [line for line in whole.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"--prompts={path} holds no prompt; write one a line")
    if path.suffix != ".jsonl":
        return lines
    try:
        prompts = [json.loads(line)["prompt"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--prompts={path}: each line must be a JSON object with a 'prompt' "
            f"({type(error).__name__}: {error})"
        ) from error
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"--prompts={path}: every 'prompt' must be text")
    return prompts
