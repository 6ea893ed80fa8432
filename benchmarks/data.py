"""Speed and memory of the way from text to batches, beside the plain libraries.

Command: python benchmarks/data.py TEXTS.jsonl.gz [--parts=tokens,loader,minhash,memory]
Cost:    about 5 minutes on 2 CPU cores with 10 MB of text
Expect:  LOG.md

tokens   encoding into a store, beside `tokenizers` called directly on the same texts
loader   batches with packing and masks, of one source and of four, beside a NumPy
         sampler without either
minhash  signatures and bands, beside datasketch on one core (pip install datasketch)
memory   the most that a build holds at once, for the corpus and ten times as much

Contenders take turns; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", type=Path, help="JSON lines with a field 'text'")
    parser.add_argument("--parts", default="tokens,loader,minhash,memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts.split(","):
            PARTS[part](options.texts, Path(folder))


def read(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def compare(what: str, unit: str, amount: float, ours: Callable, theirs: Callable):
    """Prints both rates and the median ratio of neighbouring turns."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(TURNS):
        for name, call in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    pairs = zip(seconds["theirs"], seconds["ours"], strict=True)
    ratio = statistics.median(b / a for b, a in pairs)
    rates = [amount / statistics.median(seconds[name]) for name in seconds]
    print(f"{what:42} {rates[0]:8.2f} {rates[1]:8.2f} {unit}  ratio {ratio:.2f}")


def tokens(path: Path, folder: Path) -> None:
    from lmx.data.store import write_store
    from lmx.inputs.tokenizers import train_tokenizer

    texts = read(path)
    tokenizer = train_tokenizer("bpe", texts[:: max(1, len(texts) // 2000)], 8192)
    tokenizer.save(folder / "tokenizer")
    import tokenizers

    direct = tokenizers.Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    size = sum(len(text.encode()) for text in texts) / 1e6
    count = iter(range(10**6))
    compare(
        "tokens into a store / tokenizers",
        "MB/s",
        size,
        lambda: write_store(folder / f"store{next(count)}", texts, tokenizer),
        lambda: [x.ids for x in direct.encode_batch(texts, add_special_tokens=False)],
    )


def loader(path: Path, folder: Path) -> None:
    from lmx.data.batches import Batches
    from lmx.data.mixture import Mixture
    from lmx.data.rows import Rows
    from lmx.data.store import TokenStore, write_store
    from lmx.inputs.tokenizers import train_tokenizer

    texts, tokenizer = read(path), train_tokenizer("byte", [], 300)
    parts = {"all": texts} | {f"part{n}": texts[n::4] for n in range(4)}
    stores = {}
    for name, part in parts.items():
        write_store(folder / name, part, tokenizer)
        stores[name] = TokenStore.open(folder / name)
    whole = stores.pop("all")
    random = np.random.default_rng(0)
    shapes = itertools.product(
        ((32, 256), (32, 1024), (64, 2048)),
        ("concat", "best_fit"),
        ({"all": whole}, stores),
    )
    for (rows, length), packing, sources in shapes:
        steps = int(2e7 / rows / length)
        held = Rows(sources, context_length=length, packing=packing)
        mixture = Mixture(held.counts, seed=0, shuffle="epoch")
        batches = Batches(held, mixture, batch_size=rows, prefetch=0, workers=1)

        def ours(batches=batches, steps=steps):
            for step in range(steps):
                batches.at(step)

        def theirs(rows=rows, length=length, steps=steps):
            for _ in range(steps):
                starts = random.integers(0, whole.num_tokens - length - 1, rows)
                windows = [whole.tokens[i : i + length + 1] for i in starts]
                np.stack(windows).astype(np.int32)

        what = f"[{rows}, {length}] {packing} of {len(sources)} / memmap sampler"
        compare(what, "M tokens/s", steps * rows * length / 1e6, ours, theirs)


def minhash(path: Path, folder: Path) -> None:
    from datasketch import MinHash, MinHashLSH

    from lmx.curate import minhash as ours
    from lmx.curate.duplicates import PERMUTATIONS

    del folder
    texts = read(path)
    size = sum(len(text.encode()) for text in texts) / 1e6
    bands, rows = ours.choose_bands(0.8, PERMUTATIONS)

    def signed():
        for start in range(0, len(texts), 1024):
            signatures = ours.signatures(texts[start : start + 1024])
            ours.bands(signatures, bands=bands, rows=rows)

    def sketched():
        index = MinHashLSH(threshold=0.8, num_perm=PERMUTATIONS)
        for number, text in enumerate(texts):
            words = text.lower().split()
            shingles = {
                " ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)
            }
            sketch = MinHash(num_perm=PERMUTATIONS)
            sketch.update_batch(list(shingles) or [b""])
            index.insert(number, sketch)

    compare("MinHash and bands / datasketch", "MB/s", size, signed, sketched)


def memory(path: Path, folder: Path) -> None:
    """Builds the corpus once and ten times as large, each in a process of its own."""
    texts = read(path)
    peaks = []
    for times in (1, 10):
        source = folder / f"times{times}.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for turn in range(times):
                for number, text in enumerate(texts):
                    # Other texts, or they would all be duplicates.
                    words = text.split(" ")
                    np.random.default_rng([turn, number]).shuffle(words)
                    file.write(json.dumps({"text": " ".join(words)}) + "\n")
        command = [sys.executable, __file__, str(source), "--parts=one_build"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]))
        size = source.stat().st_size / 1e6
        print(f"build of {size:6.0f} MB, one process: at most {peaks[-1]} MB")
    print(f"{'memory, ten times the corpus':42} ratio {peaks[1] / peaks[0]:.2f}")


def one_build(path: Path, folder: Path) -> None:
    from lmx.curate.build import build
    from lmx.curate.config import build_config, default_build_config
    from lmx.curate.runner import Processes

    config = default_build_config()
    config.sources = {
        "texts": {"path": str(path), "licence": "any", "uses": ("train",)}
    }
    runner = Processes(1)
    stage = lambda name, total: lambda done: None  # noqa: E731
    build(build_config(config), folder / "store", runner=runner, stage=stage)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


PARTS = {
    "tokens": tokens,
    "loader": loader,
    "minhash": minhash,
    "memory": memory,
    "one_build": one_build,
}

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
