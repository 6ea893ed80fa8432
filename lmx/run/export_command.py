"""The command `lmx export`: a trained or imported model in a published format."""

from __future__ import annotations

import json
from pathlib import Path

from lmx.core.errors import DONE, DataError
from lmx.run.activity import Activity
from lmx.run.arguments import Parser, add_step
from lmx.run.import_command import PARITY, report

EXAMPLE = """example:
  lmx export --workdir=runs/quickstart --to=hf exported
  lmx export --workdir=runs/imported --to=gguf --dtype=int8 exported
  lmx export --workdir=runs/tuned --to=peft adapter
"""


def main(argv: list[str]) -> int:
    """Parses the command line, exports, returns the exit code."""
    parser = Parser(
        prog="lmx export",
        description="Write a model for transformers (hf) or llama.cpp (gguf), or the "
        "adapter of one alone (peft).",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="a new folder to write")
    add("--workdir", required=True, metavar="DIR", help="a run, or an imported model")
    add("--to", choices=("hf", "gguf", "peft"), default="hf", help="the format")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="of the weights; int8 is GGUF's Q8_0",
    )
    add_step(parser)
    options = parser.parse_args(argv)

    from lmx.api import load
    from lmx.core.new_folder import new_folder
    from lmx.core.workdir import write_atomic
    from lmx.interop.parity import parity
    from lmx.interop.pretrained import open_pretrained

    to, dtype = options.to, options.dtype
    folder = Path(options.directory).absolute()
    if to == "peft":
        load(options.workdir, step=options.step).save(folder, to=to)
        print(f"written: {folder}, for peft.PeftModel.from_pretrained")
        return DONE
    with new_folder(folder) as new, Activity() as activity:
        activity(f"loading {options.workdir}")
        model = load(options.workdir, step=options.step)
        path = model.save(new.path, to=to, dtype=dtype, watch=activity)
        written = open_pretrained(path)
        proof = parity(written, model.params, model.model, dtype=dtype, watch=activity)
        write_atomic(new.path / PARITY, json.dumps(proof, indent=2) + "\n")
    print(f"written: {folder / path.relative_to(new.path)}")
    if not proof["ok"]:
        raise DataError(f"the export is wrong, see {folder / PARITY}")
    print(report(proof))
    return DONE
