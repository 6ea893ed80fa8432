"""Vocabularies of byte-level merges in files of their own.

    vocab.json + merges.txt       GPT-2's: tokens in the byte alphabet, pairs in order
    *.tiktoken, tokenizer.model   one token a line, in base64, and its rank

The second holds no merges: two neighbours join when together they are a token, the one
of the lowest rank first.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError
from lmx.core.text_files import read_bytes, read_json, read_text
from lmx.inputs.token_bytes import byte_alphabet
from lmx.interop.merges import LONGEST_TOKEN, all_merges

MOST_BYTES = 5_000_000  # of all tokens; o200k has 1,400,000
Merges = list[tuple[str, str]]

# Which of `byte_level.FORMS` cuts the text, by what a folder says of itself.
TOKENIZER_CLASSES = {"GPT2Tokenizer": "gpt2", "Qwen2Tokenizer": "qwen2"}
MODEL_TYPES = {"gpt2": "gpt2", "qwen2": "qwen2", "qwen3": "qwen2", "qwen3_moe": "qwen2"}
TIKTOKEN_FILES = {"cl100k_base": "cl100k", "o200k_base": "o200k", "qwen": "qwen"}
TIKTOKEN_MODEL_TYPES = {"llama": "llama3", "qwen": "qwen", "gpt_oss": "o200k"}


def read_vocab_and_merges(folder: Path) -> tuple[list[str], Merges]:
    """Reads vocab.json and merges.txt: the token of each id, and the merges."""
    file = folder / "vocab.json"
    vocab = read_json(file)
    tokens: list[str] = [""] * len(vocab)
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < len(vocab) or tokens[index]:
            raise DataError(
                f"{file}: the id of {token!r:.60} is {index!r:.40}; each token must "
                f"have one of its own below {len(vocab)}"
            )
        tokens[index] = token
    file = folder / "merges.txt"
    if not file.exists():
        raise DataError(f"{folder} has a vocab.json and no merges.txt; download both")
    merges: Merges = []
    lines = read_text(file).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or not line.strip():
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise DataError(
                f"{file}: line {number}, {line!r:.60}, does not join two tokens of "
                "vocab.json to a third; they belong to two models"
            )
        merges.append((left, right))
    return tokens, merges


def is_ranks(path: Path) -> bool:
    """Whether a file begins as a tiktoken file does: base64, a space, a number."""
    with open(path, "rb") as file:
        token, space, rank = file.readline(1000).rstrip().partition(b" ")
    return space == b" " and rank.isdigit() and _decoded(token) is not None


def read_ranks(path: Path) -> tuple[list[str], Merges]:
    """Reads a tiktoken file: the token of each rank in the byte alphabet, the merges.

    Raises a `DataError` for a file that is damaged or that no model could have.
    """
    ranks: dict[bytes, int] = {}
    size = 0
    for number, line in enumerate(io.BytesIO(read_bytes(path)), start=1):
        text, _, rank = line.rstrip(b"\r\n").partition(b" ")
        token = _decoded(text)
        if not token or not rank.isdigit() or len(rank) > 9 or token in ranks:
            raise DataError(
                f"{path}: line {number}, {line!r:.60}, is not a new token in base64 "
                "and its rank; download it again"
            )
        size += len(token)
        if len(token) > LONGEST_TOKEN or size > MOST_BYTES:
            raise DataError(
                f"{path}: line {number} has a token of {len(token)} bytes, {size} with "
                f"those before it; there may be {LONGEST_TOKEN} and {MOST_BYTES}"
            )
        ranks[token] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"{path}: the ranks are not 0 to {len(ranks) - 1}, each once")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise DataError(f"{path}: not every byte is a token; the file is cut off")
    return _merged(ranks, str(path))


def _merged(ranks: Mapping[bytes, int], where: str) -> tuple[list[str], Merges]:
    characters = {byte: character for character, byte in byte_alphabet().items()}

    def spelled(token: bytes) -> str:
        return "".join([characters[byte] for byte in token])

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = all_merges(ordered, ranks, where=where)
    pairs = [(spelled(left), spelled(right)) for left, right in merges]
    return [spelled(token) for token in ordered], pairs


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def form_of_merges(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Returns which of `FORMS` a vocab.json is for; raises a `DataError` if unknown."""
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    family = config.get("model_type")
    form = TOKENIZER_CLASSES.get(name) or MODEL_TYPES.get(str(family))
    if form is None:
        raise DataError(
            f"how text is cut before the merges of vocab.json is not known for "
            f"tokenizer_class {name!r} and model_type {family!r} (known: "
            f"{', '.join([*TOKENIZER_CLASSES, *MODEL_TYPES])}); give a tokenizer.json"
        )
    return form


def form_of_ranks(path: Path, config: Mapping[str, Any]) -> str:
    """Returns which of `FORMS` a tiktoken file is for."""
    family = config.get("model_type")
    form = TIKTOKEN_FILES.get(path.stem) or TIKTOKEN_MODEL_TYPES.get(str(family))
    if form is None:
        raise DataError(
            f"{path} has ranks but not the pattern that cuts text, which is known only "
            f"for files named {', '.join(TIKTOKEN_FILES)} and the model types "
            f"{', '.join(TIKTOKEN_MODEL_TYPES)}; give a tokenizer.json"
        )
    return form
