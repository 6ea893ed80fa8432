"""Peak memory of `lmx import`: a generated model, imported in a process of its own.

Usage: python benchmarks/import_memory.py [--layers=16] [--goal=1.3]

Prints the peak resident memory of each import, less that of importing a tiny model (the
interpreter, JAX, Orbax), over the bytes of the model in its target dtype.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

WIDTH, VOCAB = 1024, 32_000
CASES = [  # dtype of the source, of the target, bytes of a shard, format
    ("float32", "float32", 10**10, "hf"),
    ("bfloat16", "float32", 3 * 10**8, "hf"),
    ("bfloat16", "bfloat16", 10**10, "hf"),
    ("float32", "bfloat16", 3 * 10**8, "hf"),
    ("int8", "float32", 0, "gguf"),
]


def main() -> None:
    """Makes the models, imports them, prints a table; exits 1 past the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--goal", type=float, default=1.3)
    # What a process of its own is started for: its peak counts no other's memory.
    parser.add_argument("--generate", nargs=5)
    parser.add_argument("--import", nargs=3)
    options = vars(parser.parse_args())
    for name, run in (("generate", generate), ("import", import_here)):
        if options[name]:
            run(*options[name])
            return
    worst = 0.0
    print("source    target    files            size   peak  ratio")
    for source, target, shard, form in CASES:
        with tempfile.TemporaryDirectory() as folder:
            runs = {}
            for name, layers in (("tiny", 1), ("whole", options["layers"])):
                place = Path(folder) / name
                count = in_child("--generate", place, layers, source, shard, form)
                path = place / "model.gguf" if form == "gguf" else place
                runs[name] = in_child("--import", path, f"{place}_run", target)
            size = count * np.dtype("u2" if target == "bfloat16" else "f4").itemsize
            base, peak = runs["tiny"], runs["whole"]
            files = len([*place.glob("*.safetensors"), *place.glob("*.gguf")])
        ratio = (peak - base) / size
        worst = max(worst, ratio)
        print(
            f"{source:<9} {target:<9} {files} {form:<10} {size / 1e9:5.2f}GB "
            f"{(peak - base) / 1e9:5.2f}GB  {ratio:5.2f}  (base {base / 1e9:.2f}GB)",
            flush=True,
        )
    print(f"worst {worst:.2f}, goal {options['goal']}")
    sys.exit(worst > options["goal"])


def in_child(*words) -> int:
    """Returns the number that this script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return int(done.stdout.splitlines()[-1])


def generate(folder: str, layers: str, dtype: str, shard: str, form: str) -> None:
    """Writes a random model of the Llama kind and prints its parameters."""
    import jax.numpy as jnp
    from flax import linen as nn

    from lmx.core.model_schema import ModelConfig
    from lmx.core.trees import flatten_with_names, nest
    from lmx.interop import export as exports
    from lmx.interop.safetensors_file import write_safetensors
    from lmx.models.decoder import abstract_params
    from lmx.models.sizes import parameter_count, resolve

    tiny = layers == "1"
    width = 64 if tiny else WIDTH
    config = resolve(
        ModelConfig(
            width=width,
            num_layers=int(layers),
            num_heads=8,
            num_kv_heads=4,
            mlp_dim=4 * width,
            vocab_size=300 if tiny else VOCAB,
            head="untied",
        )
    )
    exports.write_safetensors = partial(write_safetensors, shard_bytes=int(shard))
    rng = np.random.default_rng(0)
    params = nest(
        {
            name: (0.02 * rng.standard_normal(x.shape, np.float32)).astype(
                jnp.bfloat16 if dtype == "bfloat16" else np.float32
            )
            for name, x in flatten_with_names(nn.meta.unbox(abstract_params(config)))
        }
    )
    exports.export(
        folder,
        to=form,
        dtype=dtype,
        model=config,
        params=params,
        tokenizer=byte_tokenizer(),
        chat_template=None,
    )
    print(parameter_count(config))


def byte_tokenizer():
    """Returns a tokenizer that has a name in GGUF."""
    import tokenizers

    from lmx.inputs.tokenizers import Tokenizer

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(["<|endoftext|>", *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = byte_level
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id"), 0)
    return Tokenizer(backend.to_str(), {"kind": "foreign", "unk_id": None, **ids})


def import_here(source: str, workdir: str, dtype: str) -> None:
    """Imports, and prints the peak resident bytes of this process."""
    from lmx.interop import parity
    from lmx.run.import_command import import_model

    parity.has_reference = lambda: False  # torch has a copy of its own
    import_model(source, Path(workdir), dtype=dtype)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
