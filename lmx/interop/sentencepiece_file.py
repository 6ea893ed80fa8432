"""A SentencePiece `tokenizer.model`, read without the library that writes it.

The file is one message of protocol buffers. Of it are read the pieces, what they were
trained as, and how text is normalized; a setting that cannot be expressed is refused.
The file may be anyone's: no length in it is believed before it is checked.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmx.core.errors import DataError
from lmx.core.text_files import read_bytes
from lmx.interop.sentencepieces import BYTE, CONTROL, UNKNOWN, Pieces

MOST_PIECES = 1_000_000
LARGEST_CHARSMAP = 2_000_000  # bytes; SentencePiece's own have 250,000
UNIGRAM, BPE, CHAR = 1, 2, 4
# Numbers of fields, their names here and their values where they are missing.
TRAINER: dict[int, tuple[str, Any]] = {
    3: ("model_type", UNIGRAM),
    24: ("whitespace_as_suffix", 0),
    35: ("byte_fallback", 0),
    46: ("bos", b"<s>"),
    47: ("eos", b"</s>"),
    48: ("pad", b"<pad>"),
}
NORMALIZER: dict[int, tuple[str, Any]] = {
    2: ("charsmap", b""),
    3: ("prefix", 1),
    4: ("squeeze", 1),
    5: ("escape", 1),
}


@dataclasses.dataclass(frozen=True)
class SentencePieceFile:
    """What a `tokenizer.model` holds.

    Attributes:
      pieces: the vocabulary and how it reads text.
      specials: its bos_token, eos_token and pad_token, where they are control pieces.
    """

    pieces: Pieces
    specials: dict[str, str]


def read_sentencepieces(path: Path) -> SentencePieceFile:
    """Reads a file; raises a `DataError` that names it and what is wrong."""
    content = read_bytes(path)
    try:
        return _parse(content)
    except (_Damaged, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no SentencePiece model that can be read: {error}; download it "
            "again, or give a tokenizer.json"
        ) from error


class _Damaged(Exception):
    """What is wrong with the content of a file."""


def _parse(content: bytes) -> SentencePieceFile:
    tokens: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer = dict(TRAINER.values())
    normalizer = dict(NORMALIZER.values())
    for field, value in _fields(content, 0, len(content)):
        if field == 1:
            if len(tokens) == MOST_PIECES:
                raise _Damaged(f"it has more than {MOST_PIECES} pieces")
            token, score, kind = _piece(content, _span(value))
            tokens.append(token)
            scores.append(score)
            kinds.append(kind)
        elif field == 2:
            trainer |= _settings(content, _span(value), TRAINER)
        elif field == 3:
            normalizer |= _settings(content, _span(value), NORMALIZER)
        elif field == 5 and _settings(content, _span(value), NORMALIZER)["charsmap"]:
            raise _Damaged("it changes text that it decodes, which is not supported")
    _check(tokens, kinds, trainer, normalizer)
    unknown = [i for i, kind in enumerate(kinds) if kind == UNKNOWN]
    pieces = Pieces(
        tokens=tokens,
        kinds=kinds,
        scores=np.asarray(scores, np.float64),
        unk_id=unknown[0],
        unigram=trainer["model_type"] == UNIGRAM,
        prefix=bool(normalizer["prefix"]),
        squeeze=bool(normalizer["squeeze"]),
        charsmap=normalizer["charsmap"],
    )
    control = {t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL}
    names = ("bos", "eos", "pad")
    named = {f"{name}_token": trainer[name].decode() for name in names}
    return SentencePieceFile(pieces, {k: v for k, v in named.items() if v in control})


def _check(tokens: list[str], kinds: list[int], trainer: dict, normalizer: dict):
    """Raises `_Damaged` for what SentencePiece refuses, or what is not expressed."""
    if len(set(tokens)) != len(tokens) or not tokens:
        raise _Damaged("its pieces are not all different, or there is none")
    if kinds.count(UNKNOWN) != 1 or not set(kinds) <= set(range(1, BYTE + 1)):
        raise _Damaged("not exactly one of its pieces stands for what is unknown")
    if trainer["model_type"] not in (UNIGRAM, BPE, CHAR):
        raise _Damaged(
            f"its model_type is {trainer['model_type']}; only unigram (1), bpe (2) and "
            "char (4) can be read"
        )
    found = {t for t, kind in zip(tokens, kinds, strict=True) if kind == BYTE}
    needed = {f"<0x{byte:02X}>" for byte in range(256)}
    if found != (needed if trainer["byte_fallback"] else set()):
        raise _Damaged(
            f"it has {len(found)} pieces that are bytes, and byte_fallback="
            f"{bool(trainer['byte_fallback'])}"
        )
    if trainer["whitespace_as_suffix"] or not normalizer["escape"]:
        raise _Damaged(
            "treat_whitespace_as_suffix and escape_whitespaces=false are not supported"
        )
    if normalizer["charsmap"]:
        _check_charsmap(normalizer["charsmap"])


def _piece(content: bytes, span: tuple[int, int]) -> tuple[str, float, int]:
    token, score, kind = b"", 0.0, 1
    for field, value in _fields(content, *span):
        if field == 1:
            start, end = _span(value)
            token = content[start:end]
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    if not token:
        raise _Damaged(f"the piece at byte {span[0]} is empty")
    return token.decode("utf-8"), score, kind


def _settings(content: bytes, span: tuple[int, int], table) -> dict[str, Any]:
    """Returns the fields of a message that `table` names."""
    found = dict(table.values())
    for field, value in _fields(content, *span):
        if field not in table:
            continue
        name, default = table[field]
        if isinstance(default, int):
            if not isinstance(value, int):
                raise _Damaged(f"its field {name} is no number")
            found[name] = value
        else:
            start, end = _span(value)
            if end - start > LARGEST_CHARSMAP:
                raise _Damaged(f"its field {name} has {end - start} bytes")
            found[name] = content[start:end]
    return found


def _span(value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise _Damaged("a number stands where a message must be")
    return value


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field of a message.

    The value is an int, 4 or 8 bytes, or the (start, end) of what has a length.
    """
    while at < end:
        key, at = _varint(content, at, end)
        field, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, at = _varint(content, at, end)
        elif wire == 2:
            length, start = _varint(content, at, end)
            at = start + length
            value = (start, at)
        elif wire in (1, 5):
            start, at = at, at + (8 if wire == 1 else 4)
            value = content[start:at]
        else:
            raise _Damaged(f"byte {at} begins no field")
        if at > end:
            raise _Damaged(
                f"field {field} would end at byte {at}, past its {end}: it is cut off"
            )
        yield field, value


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """Returns a number in pieces of seven bits and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _Damaged(f"it is cut off in a number at byte {at}")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Damaged(f"the number before byte {at} is too long")


def _check_charsmap(blob: bytes) -> None:
    """Raises `_Damaged` where a step in the table of characters would leave it.

    It is a trie in one array (darts-clone) before texts that end with a zero byte;
    the library that reads it trusts every offset.
    """
    size = int.from_bytes(blob[:4], "little")
    if not 4 <= size <= len(blob) - 4 or size % 4:
        raise _Damaged(f"its table of characters says {size} bytes of {len(blob)}")
    units = np.frombuffer(blob, "<u4", size // 4, offset=4).astype(np.int64)
    texts = np.frombuffer(blob, np.uint8, offset=4 + size)
    texts.tobytes().decode("utf-8")
    labels, offsets = units & 0x800000FF, (units >> 10) << ((units & 512) >> 6)
    steps = np.arange(1, 256)
    seen, waiting = np.zeros(len(units), bool), [offsets[:1]]
    while waiting:
        bases = waiting.pop()
        if len(bases) > 4096:
            waiting += [bases[:4096], bases[4096:]]
            continue
        if (bases | 255).max() >= len(units):
            raise _Damaged("its table of characters leads out of itself")
        nodes = bases[:, None] ^ steps
        nodes = np.unique(nodes[labels[nodes] == steps])
        nodes = nodes[~seen[nodes]]  # ends of words are shared
        seen[nodes] = True
        if not len(nodes):
            continue
        below = nodes ^ offsets[nodes]
        ends = below[(units[nodes] >> 8) & 1 == 1]
        if below.max() >= len(units):
            raise _Damaged("its table of characters leads out of itself")
        values = units[ends] & 0x7FFFFFFF
        if (values >= len(texts)).any() or (texts[values] & 0xC0 == 0x80).any():
            raise _Damaged("its table of characters leads to no text")
        waiting.append(below)
