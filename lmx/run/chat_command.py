"""The command `lmx chat`: a conversation in the terminal, or one reply."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from lmx.core.errors import DONE
from lmx.run.arguments import Parser, add_quantize, add_sampling, chosen_sampling

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
        help="an imported model, or a published one",
    )
    add("--message", help="answer this and end; without it, a conversation")
    add("--system", help="what the model is told before the conversation")
    add_sampling(parser, temperature="0, greedy")
    add_quantize(parser)
    options = parser.parse_args(argv)

    from lmx.api import CHAT_SAMPLING, load, sampling_config

    sampling = {**CHAT_SAMPLING, **chosen_sampling(options)}
    sampling_config(sampling)  # a wrong value is reported before anything is loaded
    model = load(options.workdir, quantize=options.quantize)
    messages = []
    if options.system is not None:
        messages.append({"role": "system", "content": options.system})
    questions = [options.message] if options.message is not None else asked()
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = model.chat_prompt(messages)
        reply = shown(model.stream(prompt, **sampling))
        messages.append({"role": "assistant", "content": reply})
    return DONE


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
