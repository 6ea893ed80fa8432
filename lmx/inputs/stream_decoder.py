"""Ids → text while they arrive, half a character never among it.

Which bytes an id stands for is the tokenizer's; here is only what must wait.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import numpy as np

from lmx.inputs.tokenizers import Tokenizer


class StreamDecoder:
    """Turns ids into text as they arrive; what it emits joins to `decode(all ids)`.

    Bytes that begin a code point wait for its end, so half a character is never shown.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._start = 0  # of the ids decoded together
        self._emitted = 0  # characters already given out from there
        self._begins = True  # nothing has been shown yet

    def push(self, ids: Iterable[int] | int) -> str:
        """Returns the text that `ids` complete."""
        ids = [ids] if isinstance(ids, int | np.integer) else [int(i) for i in ids]
        if self._tokenizer.pieces is not None:
            text = self._utf8.decode(b"".join(map(self._tokenizer.piece, ids)))
            return self._begun(text)
        self._ids += ids
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith("\ufffd"):  # perhaps half a code point: wait for more
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """Returns what was held back, broken bytes as U+FFFD, and starts over."""
        if self._tokenizer.pieces is not None:
            text = self._begun(self._utf8.decode(b"", final=True))
        else:
            text = self._emit(self._tokenizer.decode(self._ids[self._start :]))
        self._utf8.reset()
        self._ids, self._start, self._emitted = [], 0, 0
        self._begins = True
        return text

    def _begun(self, text: str) -> str:
        """Returns what to show of `text`: the first may have a space too many."""
        if not text or not self._begins:
            return text
        self._begins = False
        return text.removeprefix(" ") if self._tokenizer.begins_with_space else text

    def _emit(self, text: str) -> str:
        new = text[self._emitted :]
        # Such decoders look at neighbours (a space belongs between two words, not
        # before the first), so a few decoded ids stay as context for the next ones.
        keep = max(self._start, len(self._ids) - 8)
        self._emitted = len(self._tokenizer.decode(self._ids[keep:]))
        self._start = keep
        return new
