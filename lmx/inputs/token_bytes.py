"""The bytes that each token id stands for, where an id alone decides them.

    byte-level     every character of a token is a byte, by the library's alphabet
    SentencePiece  "▁" is a space, "<0x41>" the byte 0x41; one space may begin a text
    whole text     a token is its own text

Other decoders look at neighbours: for them there is no table. No text is encoded here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

SPACE = "▁"  # SentencePiece's
# Steps of decoders in a tokenizer.json.
SPACES = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
BEGINS = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


def byte_table(
    backend: tokenizers.Tokenizer, decoder: Mapping[str, Any] | None, size: int
) -> tuple[list[bytes], bool] | None:
    """Returns the bytes of all ids below `size`, and if a text begins with a space.

    `decoder` is that of the tokenizer.json. Special tokens have no bytes. Returns None
    where ids depend on their neighbours.
    """
    steps = list((decoder or {}).get("decoders", [decoder or {}]))
    names = [step.get("type") for step in steps]
    to_bytes: Callable[[str], bytes]
    added_to_bytes: Callable[[str], bytes] = str.encode
    begins = False
    if names == ["ByteLevel"]:
        to_bytes = from_byte_level
    elif names == ["Fuse"]:
        to_bytes = str.encode
    elif steps[0] == SPACES:
        to_bytes = from_piece if "ByteFallback" in names else spaced
        added_to_bytes = spaced
        rest = [s for s in steps[1:] if s["type"] not in ("ByteFallback", "Fuse")]
        begins = rest == [BEGINS]
        if rest and not begins:
            return None
    else:
        return None
    table = [b""] * size
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        table[index] = to_bytes(token)
    for index, added in backend.get_added_tokens_decoder().items():
        table[index] = b"" if added.special else added_to_bytes(added.content)
    return table, begins


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Returns the byte that each character of the library's byte alphabet stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, follow U+0100.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def from_byte_level(token: str) -> bytes:
    """Returns the bytes of a token of the byte alphabet, or its text's."""
    table = byte_alphabet()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def from_piece(token: str) -> bytes:
    """Returns the bytes of a SentencePiece; "<0x41>" is one byte."""
    byte = BYTE_NAME.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else spaced(token)


def spaced(token: str) -> bytes:
    """Returns the bytes of a SentencePiece, whose "▁" are spaces."""
    return token.replace(SPACE, " ").encode()
