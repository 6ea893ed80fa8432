"""The command `lmx train`."""

from __future__ import annotations

from pathlib import Path

from lmx.core.config import freeze
from lmx.core.errors import DONE
from lmx.run.arguments import Parser, experiment_config

EXAMPLE = """example:
  lmx train --config=experiments/quickstart.py
  lmx train --config=experiments/quickstart.py:size=10m --config.steps=5000
  lmx train --config=experiments/quickstart.py --config.data.path=my_texts/
"""


def main(argv: list[str]) -> int:
    """Parses the command line, trains, and returns the exit code."""
    parser = Parser(
        prog="lmx train",
        description="Train an experiment. The same command resumes an interrupted run.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="experiment file; VARIANT is size=10m and/or smoke, comma-separated",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="where results go (default: runs/EXPERIMENT)"
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        dest="unused",
        help="change an option, as in --config.model.num_layers=8",
    )
    options, overrides = parser.parse_with_overrides(argv)
    config = freeze(experiment_config(options.config, overrides))

    from lmx.run.train import default_workdir, train

    workdir = Path(options.workdir or default_workdir(options.config))
    train(config, workdir)
    return DONE
