"""`lmx data show`: a row of a store, or the batch of a training step, decoded.

What is shown is what the model sees: rows are cut, packed and ordered by the code that
training uses. How it looks is in `row_text`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lmx.core.config import freeze
from lmx.core.errors import DONE, UserError, pick
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import DataConfig
from lmx.data.built import SPLITS, SourceStores, is_built, open_built
from lmx.data.mirror import opened_at
from lmx.data.packing import Packing
from lmx.data.pipeline import cache_directory, prepare
from lmx.data.rows import Rows
from lmx.run.arguments import Parser, experiment_config
from lmx.run.row_text import counts_line, legend, row_text, rule, visible

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLE = """example:
  lmx data show STORE --row=17
  lmx data show STORE --row=3 --source=wiki --split=validation --length=1024
  lmx data show --config=experiments/quickstart.py --step=120
"""


def main(argv: list[str]) -> int:
    """Parses the command line, prints, and returns the exit code."""
    parser = Parser(
        prog="lmx data show",
        description="Decode a row of a store, or the exact batch of a training step.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("store", metavar="STORE", nargs="?", help="what `lmx data build` wrote")
    add("--row", type=int, help="which row of the split, from 0 (default 0)")
    add("--source", metavar="NAME", help="count rows in this source alone")
    add("--split", help="train (default) or validation")
    add("--length", type=int, help="tokens of a row (default 256)")
    add("--packing", help="concat (default), document or best_fit (of pairs)")
    add("--config", metavar="FILE[:VARIANT]", help="experiment file, in place of STORE")
    add("--step", type=int, help="which step, as in metrics.jsonl: the first is 1")
    options, overrides = parser.parse_with_overrides(argv)
    if (options.store is None) == (options.config is None):
        raise UserError("lmx data show needs a STORE and --row, or --config and --step")
    given = {name for name, value in vars(options).items() if value is not None}
    of_store = {"store", "row", "source", "split", "length", "packing"}
    wrong = sorted(given & ({"step"} if options.store else of_store - {"store"}))
    if wrong:
        other = "a STORE" if options.config is None else "--config"
        raise UserError(f"--{wrong[0]} is not an option of {other}; leave it out")

    from rich.console import Console

    # The terminal wraps lines, so that copied text is the text.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if options.store:
        show_row(console, options)
    else:
        show_step(console, options, overrides)
    return DONE


def show_row(console: Console, options: argparse.Namespace) -> None:
    """Prints one row of a built store, with the names of its documents."""
    path = opened_at(options.store, cache_dir=cache_directory(DataConfig()))
    if not is_built(path):
        raise UserError(
            f"{options.store} is not a built store; give the folder that "
            "`lmx data build` wrote, or an experiment with --config and --step"
        )
    built = open_built(path)
    split = options.split or SPLITS[0]
    pick(dict.fromkeys(SPLITS), split, "--split")
    sources = {source.name: source for source in built.sources}
    if options.source:
        chosen = pick(sources, options.source, "source of this store")
        sources = {chosen.name: chosen}
    length = options.length
    rows = Rows(
        {name: getattr(source, split) for name, source in sources.items()},
        context_length=ModelConfig().context_length if length is None else length,
        packing=options.packing or default_packing(sources.values(), split),
    )
    row = options.row or 0
    if not len(rows):
        whose = f"source {options.source!r}" if options.source else options.store
        other = SPLITS[split == SPLITS[0]]
        raise UserError(
            f"{whose} has no rows in {split}: nothing of it was kept there; try "
            f"--split={other}" + (", or leave out --source" if options.source else "")
        )
    if not 0 <= row < len(rows):
        raise UserError(
            f"--row={row} is not there: {split} has rows 0 to {len(rows) - 1:,}"
        )
    ids = np.array([row])
    batch = rows.batch(ids)
    source = sources[rows.names[int(rows.source_of(ids)[0])]]
    names = built.names(split, source.name)
    held = rows.documents(row)
    console.print(legend(console))
    console.print(rule(console, f"row {row:,} of {len(rows):,} · {split}"))
    console.print(visible(f"{source.name} ({source.licence}): {counts_line(batch)}"))
    shown = [names[number] for number in held[:3]]
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    console.print(visible(f"{', '.join(shown)}{more}"))
    for name, column in getattr(source, split).columns.items():
        sizes = [f"{column.size(number):,}" for number in held[:3]]
        console.print(f"{name}: {', '.join(sizes)} bytes{more}")
    console.print()
    if rows.waste.left_out:
        console.print(f"{rows.waste.left_out:,} pairs are longer than a row: left out")
    console.print(row_text(console, batch, 0, tokenizer=built.tokenizer))


def default_packing(sources: Iterable[SourceStores], split: str) -> Packing:
    """Returns the packing of training, or the one that keeps pairs together."""
    grouped = any(getattr(source, split).group > 1 for source in sources)
    return "best_fit" if grouped else DataConfig().packing


def show_step(console: Console, options: argparse.Namespace, overrides: list) -> None:
    """Prints the batch that a training step takes."""
    from lmx.run.start import adopted

    config = adopted(freeze(experiment_config(options.config, overrides)))
    step = 1 if options.step is None else options.step
    if not 1 <= step <= config.steps:
        raise UserError(
            f"--step={step} is not a step of this experiment: 1 to {config.steps:,}"
        )
    corpus = prepare(
        config.data,
        context_length=config.model.context_length,
        seed=config.seed,
        steps=config.steps,
        report=lambda text: console.print(text, style="dim"),
    )
    batches = corpus.train_batches()
    ids, batch = batches.ids_at(step - 1, 0, batches.batch_size), batches.at(step - 1)
    sources = batches.rows.source_of(ids)
    first = np.cumsum([0, *batches.rows.counts.values()])
    pieces = len(batch.tokens) // len(ids)  # of each row, where rows are cut
    console.print(legend(console))
    console.print(f"step {step:,} of {config.steps:,}: {counts_line(batch)}")
    for place in range(len(batch.tokens)):
        row, piece = divmod(place, pieces)
        source = corpus.sources[sources[row]]
        where = f"row {ids[row] - first[sources[row]]:,} of {source.name}"
        part = f", piece {piece + 1}/{pieces}" if pieces > 1 else ""
        title = f"{place + 1}/{len(batch.tokens)} · {where}{part} ({source.licence})"
        console.print()
        console.print(rule(console, title))
        console.print(row_text(console, batch, place, tokenizer=corpus.tokenizer))
