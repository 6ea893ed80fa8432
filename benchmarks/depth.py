"""Whether compile time grows with depth when layers are scanned.

    python benchmarks/depth.py [--depths 12 48] [--width 384]

Compiles the real training step, without any cache, for each depth and each way to loop
over layers. Last line: `ratio scan NUMBER`, seconds of the deepest over those of the
shallowest under scan. Goal: ≤ 1.3 from 12 to 48 layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import jax
import numpy as np

from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig, OptimConfig
from lmx.inputs.batch import Batch
from lmx.models.decoder import Decoder
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.optimizers import make_optimizer
from lmx.training.state import init_state
from lmx.training.step import train_step


def compile_seconds(depth: int, width: int, layer_loop: str) -> float:
    """Returns the time to trace and compile one training step."""
    model = resolve(
        ModelConfig(
            width=width,
            num_layers=depth,
            num_heads=width // 64,
            vocab_size=256,
            layer_loop=layer_loop,  # type: ignore[arg-type]
        )
    )
    optim = OptimConfig()
    optimizer = make_optimizer(optim, steps=100)
    state = jax.eval_shape(
        partial(init_state, decoder=Decoder(model), optimizer=optimizer, config=optim),
        jax.random.key(0),
    )
    ids = jax.ShapeDtypeStruct((8, model.context_length), np.int32)
    weights = jax.ShapeDtypeStruct(ids.shape, np.float32)
    step = partial(
        train_step,
        objective=NextToken(model, ObjectiveConfig()),
        optimizer=optimizer,
        config=optim,
    )
    started = time.perf_counter()
    jax.jit(step).lower(state, Batch(ids, ids, weights, ids, ids)).compile()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    compile_seconds(2, options.width, "scan")  # what is only slow the first time
    medians: dict[int, float] = {}
    for depth in options.depths:
        times = []
        for _ in range(options.repeats):
            jax.clear_caches()
            times.append(compile_seconds(depth, options.width, "scan"))
        medians[depth] = statistics.median(times)
        print(f"scan    {depth:3d} layers {medians[depth]:6.2f} s")
    shallow = min(options.depths)
    jax.clear_caches()
    unrolled = compile_seconds(shallow, options.width, "unroll")
    print(f"unroll  {shallow:3d} layers {unrolled:6.2f} s")
    print(f"ratio scan {medians[max(options.depths)] / medians[shallow]:.2f}")


if __name__ == "__main__":
    main()
