"""Speed of generation beside transformers and llama.cpp, and the limit of memory.

Command: python benchmarks/decode.py MODEL.gguf --llama-python=PATH
Cost:    about 10 minutes for a model of 135M parameters on 2 CPU cores
Expect:  1.3 to 1.5 times transformers at one row, about the same at eight; of llama.cpp
         0.8 to 0.9 at equal bits and one row, 1.3 (8 bits) to 1.7 (4 bits) at eight
         rows (LOG.md)

All continue one prompt greedily by the same number of tokens, at one row and at eight;
a call's time holds its prefill. Every contender is a process of its own that has made
each call once before. They take turns, so that a drifting machine slows all; the table
shows medians, and its ratios are medians of the ratios of neighbouring turns.
transformers and the Q8_0 file get the weights that lmx exports; the 4-bit file is MODEL
itself where it has 4 bits.

A step of decoding reads every weight and the cache once: `limit` is what the measured
read bandwidth allows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from decode_peers import Generate, serve
from train_throughput import KEEP_MEMORY, WIDE_VECTORS, Contender

PROMPT = "Explain to a child, in a few sentences, why the sky is blue and sunsets red."
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
# What each of ours is compared with.
PEERS = {
    "lmx:float32": "transformers:float32",
    "lmx:bfloat16": "transformers:bfloat16",
    "lmx:int8": "llama.cpp:Q8_0",
    "lmx:int4": "llama.cpp:Q4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .gguf file, best one of 4 bits")
    parser.add_argument(
        "--llama-python", metavar="PATH", help="it has llama-cpp-python"
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rows", default="1,8", help="batch sizes")
    parser.add_argument("--ours", default="float32,bfloat16,int8,int4")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(lmx_model(options.model, *options.serve))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        commands = contenders(options, Path(folder))
        running = {
            name: stack.enter_context(Contender(command, environment()))
            for name, command in commands.items()
        }
        for rows in (int(word) for word in options.rows.split(",")):
            compare(running, rows, options, weights=parameters(options.model))


def compare(running: dict, rows: int, options, *, weights: tuple[int, float]) -> None:
    """Prints one table: tokens a second of each contender at one batch size."""
    tokens = options.new_tokens
    whole: dict[str, list[float]] = {name: [] for name in running}
    first: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.turns):
        for name, contender in running.items():
            whole[name].append(contender.run(f"{rows} {tokens}"))
            first[name].append(contender.run(f"{rows} 1"))
    bandwidth = read_bandwidth()
    print(
        f"\n{rows} rows, {tokens} new tokens; memory reads {bandwidth / 1e9:.0f} GB/s"
    )
    print(
        f"{'':22} {'tokens/s':>9} {'best':>7} {'first token':>12} {'limit':>7}  ratio"
    )
    for name in running:
        typical, best = statistics.median(whole[name]), min(whole[name])
        line = f"{name:22} {rows * tokens / typical:9.1f} {rows * tokens / best:7.1f}"
        line += f" {1000 * statistics.median(first[name]):9.0f} ms"
        if name in PEERS:
            count, cache = weights
            read = count * BITS[name.partition(":")[2]] / 8 + rows * tokens * cache / 2
            line += f" {rows * bandwidth / read:7.0f}"
        if (peer := PEERS.get(name)) in running:
            turns = sorted(
                theirs / ours
                for theirs, ours in zip(whole[peer], whole[name], strict=True)
            )
            line += f"  {statistics.median(turns):.2f} of {peer}"
            line += f" [{turns[0]:.2f}, {turns[-1]:.2f}]"
        print(line, flush=True)


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Exports the model for the others; returns the command of each contender."""
    import lmx

    model = lmx.load(options.model)
    prompt = folder / "prompt.json"
    ids = model.chat_prompt([{"role": "user", "content": PROMPT}])
    prompt.write_text(json.dumps(ids))
    kinds = options.ours.split(",")
    commands = {
        f"lmx:{kind}": [
            *(sys.executable, __file__, options.model),
            *("--serve", kind, str(prompt)),
        ]
        for kind in kinds
    }

    def peer(python: str, name: str, path: Path | str) -> None:
        script = str(Path(__file__).with_name("decode_peers.py"))
        commands[name] = [python, script, name, str(path), str(prompt)]

    directory = model.save(folder / "hf", dtype="float32")
    for kind in {"float32", "bfloat16"}.intersection(kinds):
        peer(options.torch_python, f"transformers:{kind}", directory)
    if options.llama_python and "int8" in kinds:
        file = model.save(folder / "q8", to="gguf", dtype="int8")
        peer(options.llama_python, "llama.cpp:Q8_0", file)
    if options.llama_python and "int4" in kinds:
        peer(options.llama_python, "llama.cpp:Q4", options.model)
    return commands


def lmx_model(file: str, kind: str, prompt: str) -> Generate:
    """Returns greedy generation by lmx."""
    import lmx
    from lmx.generate.decode import Generator
    from lmx.generate.sampling import SamplingConfig

    model = lmx.load(file)
    ids = json.loads(Path(prompt).read_text())
    dtype = kind if kind in ("float32", "bfloat16") else "bfloat16"
    config = dataclasses.replace(model.model, compute_dtype=dtype)
    quantize: Any = None if kind == dtype else kind
    generator = Generator(config, model.params, eos_ids=(), quantize=quantize)

    def generate(rows: int, tokens: int) -> list[list[int]]:
        sampling = SamplingConfig(temperature=0, max_new_tokens=tokens)
        return [x.tokens for x in generator.generate([ids] * rows, sampling)]

    return generate


def parameters(file: str) -> tuple[int, float]:
    """Returns the number of weights, and the cache's bytes for a token."""
    import jax

    import lmx
    from lmx.models.decoder import count_params, init_cache

    model, length = lmx.load(file).model, 256
    cache = jax.eval_shape(
        lambda: init_cache(model, batch_size=1, length=length, piece=length)
    )
    size = sum(plane.size * plane.dtype.itemsize for plane in jax.tree.leaves(cache))
    return count_params(model), size / length


def read_bandwidth() -> float:
    """Returns the bytes a second at which a float32 matrix meets a vector, at best.

    It is the fastest reading that was seen here: sums of rows reach half of it.
    """
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((2**17, 2**10), jnp.float32)
    vector = jnp.ones((2**10,), jnp.float32)
    product = jax.jit(jnp.dot)
    product(matrix, vector).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(matrix, vector).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return matrix.nbytes / min(seconds)


def environment() -> dict[str, str]:
    """Returns the environment of every contender: that of launch/environment.sh."""
    path = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    return {
        **os.environ,
        "GLIBC_TUNABLES": KEEP_MEMORY,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": path,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {WIDE_VECTORS}",
    }


if __name__ == "__main__":
    main()
