"""What a model loses by weights of few bits: perplexity on a real text.

Command: python benchmarks/quantization.py MODEL.gguf
Cost:    about 2 minutes for a model of 135M parameters on 2 CPU cores
Expect:  int8 within 1 % of float32's perplexity (LOG.md)

The text is the reference manual that Python carries (`pydoc_data.topics`), or a file of
yours. Each kind scores the same tokens, in rows that start anew, through the very
parameters and products that generation uses.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lmx
from lmx.generate.weights import decoding_logits, for_decoding
from lmx.models.decoder import Decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a workdir, a .gguf file or a directory")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to score")
    parser.add_argument("--rows", type=int, default=32, help="rows to score")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--kinds", default="float32,bfloat16,int8,int4")
    options = parser.parse_args()
    model = lmx.load(options.model)
    ids = model.tokenizer.encode(read(options.text))
    count = options.rows * options.length
    if len(ids) < count:
        parser.error(f"the text has {len(ids)} tokens, fewer than {count}")
    # Spread over the text, so that rows are of many subjects.
    starts = np.linspace(0, len(ids) - options.length, options.rows).astype(int)
    tokens = np.asarray([ids[i : i + options.length] for i in starts], np.int32)
    base = None
    for kind in options.kinds.split(","):
        dtype = kind if kind in ("float32", "bfloat16") else "bfloat16"
        config = dataclasses.replace(model.model, compute_dtype=dtype)
        quantize = None if kind == dtype else kind
        loss = mean_loss(*for_decoding(config, model.params, quantize=quantize), tokens)
        base = loss if base is None else base
        perplexity, change = math.exp(loss), math.expm1(loss - base)
        print(f"{kind:9} {loss:.4f} nats  perplexity {perplexity:.3f} {change:+.2%}")


def mean_loss(config, params, tokens: np.ndarray) -> float:
    """Returns the mean negative log-probability of all tokens but a row's first."""

    @jax.jit
    def score(params, tokens_BL):
        hidden = Decoder(config).apply({"params": params}, tokens_BL[:, :-1])
        logits = decoding_logits(config, params, hidden)
        picked = jnp.take_along_axis(logits, tokens_BL[:, 1:, None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()

    return float(
        np.mean([score(params, tokens[i : i + 4]) for i in range(0, len(tokens), 4)])
    )


def read(file: str | None) -> str:
    """Returns the text to score."""
    if file is not None:
        return Path(file).read_text(encoding="utf8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


if __name__ == "__main__":
    main()
