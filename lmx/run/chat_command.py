"""The command `lmx chat`: a conversation in the terminal, or one reply."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable

from lmx.core.errors import DONE, DataError
from lmx.run.activity import Activity, format_bytes
from lmx.run.arguments import (
    Parser,
    add_quantize,
    add_sampling,
    add_step,
    chosen_sampling,
    utf8,
)

EXAMPLE = """example:
  lmx chat --workdir=runs/imported
  lmx chat --workdir=runs/imported --message="What is the capital of France?"
"""


def main(argv: list[str]) -> int:
    """Parses the command line, talks, returns the exit code."""
    parser = Parser(
        prog="lmx chat",
        description="Talk to a model that was tuned to chat.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        metavar="DIR",
        help="an imported model, a run, or a published one",
    )
    add("--message", type=utf8, help="answer this and end; without it, a conversation")
    add("--system", type=utf8, help="what the model is told before the conversation")
    add_sampling(parser, temperature="0, greedy")
    add_quantize(parser)
    add_step(parser)
    options = parser.parse_args(argv)

    activity = Activity()
    activity(f"loading {options.workdir}")
    try:
        talk(options, activity)
    finally:
        activity.close()
    return DONE


def talk(options: argparse.Namespace, activity: Activity) -> None:
    """Answers what the options or the user say; `activity` shows until it begins."""
    import jax

    from lmx.api import CHAT_SAMPLING, load, sampling_config
    from lmx.models.sizes import parameter_count
    from lmx.training.progress import format_count

    sampling = {**CHAT_SAMPLING, **chosen_sampling(options)}
    sampling_config(sampling)  # a wrong value is reported before anything is loaded
    model = load(
        options.workdir,
        step=options.step,
        quantize=options.quantize,
    )
    size = sum(x.nbytes for x in jax.tree.leaves(model.params))
    count = format_count(parameter_count(model.model))
    compiling = f"compiling {count} parameters ({format_bytes(size)})"
    messages = []
    if options.system is not None:
        messages.append({"role": "system", "content": options.system})
    activity.close()  # a question is typed where the line was
    questions = [options.message] if options.message is not None else asked()
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = model.chat_prompt(messages)
        if compiling:
            activity(compiling)
        pieces = model.stream(prompt, **sampling)
        first = next(pieces, "")
        activity.close()
        compiling = ""
        reply = shown(itertools.chain([first], pieces))
        messages.append({"role": "assistant", "content": reply})


def asked() -> Iterable[str]:
    """Yields what the user types, until the end of the input or an empty line."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("An empty line ends the conversation.")
    while True:
        try:
            line = input("\n> " if terminal else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DataError(
                f"what was asked on stdin is not UTF-8 text: {error.reason}; convert it"
            ) from error
        if not line.strip():
            return
        yield line


def shown(pieces: Iterable[str]) -> str:
    """Writes a reply as it comes and returns it whole."""
    reply = ""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        reply += piece
    sys.stdout.write("\n")
    return reply
