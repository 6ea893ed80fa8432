"""The command line: `lmx COMMAND …`. It parses nothing but the command's name."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from lmx.core.errors import (
    BUG,
    DONE,
    INTERRUPTED,
    IO_ERROR,
    USAGE,
    UserError,
    did_you_mean,
)

# Command → (module with `main(argv)`, what it does). Modules load when they are run.
COMMANDS = {
    "train": ("lmx.run.train_command", "train an experiment, or go on with one"),
    "generate": ("lmx.run.generate_command", "continue prompts with a trained model"),
    "import": ("lmx.run.import_command", "make a workdir of a published model"),
    "chat": ("lmx.run.chat_command", "talk to a model"),
    "eval": ("lmx.run.eval_command", "measure a model on tasks, or compare two"),
    "embed": ("lmx.run.embed_command", "turn texts into vectors"),
    "merge": ("lmx.run.merge_command", "average or merge models of one shape"),
    "export": ("lmx.run.export_command", "write a model for transformers or llama.cpp"),
    "data": ("lmx.run.data_command", "build, show and trace what training reads"),
    "tokenizer": ("lmx.run.tokenizer_command", "train tokenizers and compare them"),
    "config": ("lmx.run.config_command", "show, compare and explain options"),
}
HELP = """lmx: the whole life of a language model, in JAX

usage: lmx COMMAND [OPTIONS]

{commands}

  lmx COMMAND --help    options and an example

example:
  lmx train --config=experiments/quickstart.py
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code (see `lmx/core/errors.py`)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        rows = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(rows)))
        return DONE if argv else USAGE
    if argv[0] in ("--version", "version"):
        from lmx import __version__

        print(f"lmx {__version__}")
        return DONE
    if argv[0] not in COMMANDS:
        near = did_you_mean(argv[0], COMMANDS)
        print(f"lmx: unknown command {argv[0]!r}{near}", file=sys.stderr)
        return USAGE
    # A second start finds its programs compiled; JAX reads these when it is imported.
    root = os.environ.get("LMX_CACHE") or os.path.expanduser("~/.cache/lmx")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(root, "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may know fewer characters
        sys.stdout.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):  # in the C locale it takes any bytes
        sys.stdin.reconfigure(errors="strict")
    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except UserError as error:
        print(f"lmx {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away: that is how `| head` ends us, but no
        # end for a training run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return IO_ERROR if argv[0] == "train" else DONE
    except Exception:
        traceback.print_exc()
        print("lmx: this is a bug of lmx; please report it", file=sys.stderr)
        return BUG


if __name__ == "__main__":
    sys.exit(main())
