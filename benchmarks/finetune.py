"""LoRA fine-tuning of a published model beside peft and transformers, on CPU.

Command: python benchmarks/finetune.py MODEL --torch-python=PATH
Cost:    about 4 minutes for each dtype on 2 CPU cores, MODEL of 135M parameters
Expect:  LOG.md; the goal is 1.3 times the tokens/s of peft

MODEL is what lmx can load; transformers gets it as lmx writes it. Both change every
linear layer of the blocks by rank 16, on the same rows of text of this repository, of
which the first half has no loss, with AdamW and clipping; the losses of their first
steps are compared. peft has the base in the dtype of the products, as lmx has.

Besides, lmx trains all weights ('full'), and the norms alone ('floor'), which is the
least that a gradient through all layers costs: LoRA's overhead is over that.

All are processes of their own under the same allocator settings and take turns, as in
`train_throughput.py`, which runs them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from train_throughput import Contender, environment, serve

HERE = Path(__file__).parent
BATCH, CONTEXT, ROWS = 4, 512, 64
RANK, ALPHA, LEARNING_RATE = 16, 32.0, 1e-4
METHODS = {
    "lmx": {"method": "lora"},
    "dora": {"method": "dora"},
    "qlora": {"method": "lora", "quantize": "int8"},
    "full": {},
    "floor": {"train": ("norm",)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a workdir, a Hugging Face directory, a .gguf")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--jemalloc", metavar="PATH", help="libjemalloc.so to preload")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contender")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--contenders", default="lmx,peft,full,floor")
    parser.add_argument("--layer-loop", default="auto")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_lmx(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.model, Path(folder))
        ratios = {d: compare(d, folder, options) for d in options.dtypes.split(",")}
    for dtype, ratio in ratios.items():
        print(f"ratio {dtype} {ratio:.3f}")


def prepare(model: str, folder: Path) -> None:
    """Writes the model for transformers, and the rows that all are trained on."""
    import lmx

    language_model = lmx.load(model)
    language_model.save(folder / "model")
    text = "".join(path.read_text() for path in sorted(HERE.parent.glob("**/*.md")))
    ids = np.asarray(language_model.tokenizer.encode(text), np.int32)
    ids = np.resize(ids, ROWS * BATCH * (CONTEXT + 1))
    np.save(folder / "rows.npy", ids.reshape(ROWS, BATCH, CONTEXT + 1))


def compare(dtype: str, folder: str, options: argparse.Namespace) -> float:
    """Prints the speed of each contender and returns that of lmx over the second's."""
    names = options.contenders.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        contenders = {}
        for name in names:
            command = [
                *(sys.executable, __file__, options.model, "--serve", name),
                *("--folder", folder, "--dtypes", dtype),
                *("--layer-loop", options.layer_loop),
            ]
            if name == "peft":
                reference = str(HERE / "peft_reference.py")
                command = [options.torch_python, reference, folder, dtype]
            started = Contender(command, environment(options.jemalloc))
            contenders[name] = stack.enter_context(started)
        for _ in range(options.turns):
            for name, contender in contenders.items():
                seconds[name].append(contender.run(1))
    for name in names:
        losses = " ".join(Path(folder, f"{name}.loss").read_text().split())
        typical = statistics.median(seconds[name])
        line = f"{dtype:9} {name:6} {BATCH * CONTEXT / typical:6.0f} tokens/s, "
        line += f"{typical:.2f} s a step, losses {losses}"
        if name != "lmx":
            pairs = zip(seconds[name], seconds["lmx"], strict=True)
            turns = sorted(theirs / mine for theirs, mine in pairs)
            line += f"; lmx is {statistics.median(turns):.2f}x"
            line += f" [{turns[0]:.2f}, {turns[-1]:.2f}] of it"
        print(line, flush=True)
    pairs = zip(seconds[names[1]], seconds["lmx"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def recorded(steps, folder: str, name: str):
    """Yields the losses of `steps`, and leaves the first three in a file."""
    for i, loss in enumerate(steps):
        if i < 3:
            with open(Path(folder, f"{name}.loss"), "a" if i else "w") as file:
                file.write(f"{float(loss):.5f}\n")
        yield loss


def serve_lmx(options: argparse.Namespace) -> None:
    """Serves the step of `lmx train`, as the CPU has it."""
    import dataclasses

    import jax

    import lmx
    from lmx.core.schema import AdapterConfig, ObjectiveConfig, OptimConfig
    from lmx.finetune.adapter import Adapter, is_adapted
    from lmx.inputs.batch import Batch
    from lmx.models.kernels import micro_batches
    from lmx.run.build import first_state
    from lmx.training.objective import NextToken
    from lmx.training.optimizers import make_optimizer
    from lmx.training.step import train_step

    source = lmx.load(Path(options.folder, "model"))
    model = dataclasses.replace(
        source.model,
        context_length=CONTEXT,
        compute_dtype=options.dtypes,
        residual_dtype=options.dtypes,
        layer_loop=options.layer_loop,
    )
    config = AdapterConfig(rank=RANK, alpha=ALPHA, **METHODS[options.serve])
    adapter = Adapter(config, model) if is_adapted(config) else None
    optim = OptimConfig(
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_steps=0,
        accumulate_steps=micro_batches(BATCH, BATCH * CONTEXT, form="cpu"),
    )
    optimizer = make_optimizer(optim, steps=ROWS)
    begin = jax.jit(partial(first_state, adapter, optimizer, optim))
    state = begin(jax.random.key(0), source.params)
    del source
    more = {} if adapter is None else {"join": adapter.join}
    step = partial(
        train_step,
        objective=NextToken(model, ObjectiveConfig()),
        optimizer=optimizer,
        config=optim,
        **more,
    )
    compiled = jax.jit(step, donate_argnums=0)
    rows = np.load(Path(options.folder, "rows.npy"))
    place = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), (BATCH, CONTEXT))

    def steps(state):
        while True:
            for row in rows:
                batch = Batch(
                    tokens=row[:, :-1],
                    targets=row[:, 1:],
                    loss_weights=(place >= CONTEXT // 2).astype(np.float32),
                    segment_ids=np.ones_like(place),
                    positions=place,
                )
                state, metrics = compiled(state, batch)
                yield metrics["loss"]

    serve(recorded(steps(state), options.folder, options.serve))


if __name__ == "__main__":
    main()
