"""Pieces with scores → a tokenizer that reads text as SentencePiece does.

    bpe       of two neighbours that join to a piece, those of the best score join first
    unigram   the pieces whose scores add up to most

Where the two libraries part, text never gets lost: a character without a piece is its
bytes, or unknown. One file holds such pieces (`sentencepiece_file.py`), and so does
GGUF; none is opened here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx.core import errors
from lmx.inputs.token_bytes import SPACE
from lmx.interop.merges import LONGEST_TOKEN, all_merges

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MOST_CHARACTERS = 10_000_000  # of all pieces; real vocabularies have up to 3,000,000


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A vocabulary: piece i is token id i.

    Attributes:
      tokens: the text of each piece, all different.
      kinds: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE.
      scores: float64, the higher the sooner.
      unk_id: the piece for what has none.
      unigram: whether scores add up, or else say what joins first.
      prefix: whether a text begins with a space of its own.
      squeeze: whether spaces at both ends and next to another vanish.
      charsmap: SentencePiece's compiled table of characters to replace, or b"".
    """

    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: np.ndarray
    unk_id: int | None
    unigram: bool = False
    prefix: bool = True
    squeeze: bool = False
    charsmap: bytes = b""


def build(pieces: Pieces) -> tokenizers.Tokenizer:
    """Returns the tokenizer; raises a `DataError` for pieces that contradict it."""
    import tokenizers
    from tokenizers import decoders

    _check(pieces)
    backend = tokenizers.Tokenizer(_model(pieces))
    backend.normalizer = _normalizer(pieces)
    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    if BYTE in pieces.kinds:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if pieces.prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_tokens(_added(pieces, backend.normalizer))
    return backend


def _check(pieces: Pieces) -> None:
    if not np.isfinite(pieces.scores).all():
        raise errors.DataError(
            f"piece {int(np.argmin(np.isfinite(pieces.scores)))} has a score that is "
            "no number; convert the file again"
        )
    lengths = [len(token) for token in pieces.tokens]
    if max(lengths) > LONGEST_TOKEN or sum(lengths) > MOST_CHARACTERS:
        raise errors.DataError(
            f"piece {int(np.argmax(lengths))} has {max(lengths)} characters and all "
            f"{sum(lengths)}, more than {LONGEST_TOKEN} and {MOST_CHARACTERS}; convert "
            "the file again"
        )


def _model(pieces: Pieces) -> Any:
    from tokenizers import models

    if pieces.unigram:
        if pieces.unk_id is None:
            raise errors.DataError("no piece stands for what is unknown; one must")
        return models.Unigram(
            vocab=list(zip(pieces.tokens, _unigram_scores(pieces), strict=True)),
            unk_id=pieces.unk_id,
            byte_fallback=BYTE in pieces.kinds,
        )
    return models.BPE(
        vocab={token: index for index, token in enumerate(pieces.tokens)},
        merges=merges_of(pieces),
        unk_token=None if pieces.unk_id is None else pieces.tokens[pieces.unk_id],
        fuse_unk=True,
        byte_fallback=BYTE in pieces.kinds,
    )


def _unigram_scores(pieces: Pieces) -> list[float]:
    """Returns the scores; a user's piece beats all that could stand in its place."""
    kinds = np.asarray(pieces.kinds)
    best = float(pieces.scores[kinds == NORMAL].max(initial=0.0))
    scores = pieces.scores.tolist()
    for index in map(int, np.flatnonzero(kinds == USER_DEFINED)):
        scores[index] = len(pieces.tokens[index].encode()) * best - 0.1
    return scores


def merges_of(pieces: Pieces) -> list[tuple[str, str]]:
    """Returns all pairs of pieces that join to a piece, the best score of it first."""
    texts = [i for i, kind in enumerate(pieces.kinds) if kind in (NORMAL, USER_DEFINED)]
    ordered = sorted(texts, key=lambda index: -pieces.scores[index])
    tokens = [pieces.tokens[index] for index in ordered]
    return all_merges(tokens, set(tokens), where="the SentencePiece model")


def _normalizer(pieces: Pieces) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeeze:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if pieces.prefix:
        # A text that is one user-defined piece gets no space: the library brings the
        # pieces themselves, which it looks for, into the form of text so.
        own = "|".join(re.escape(token) for token in _user_defined(pieces))
        start = Regex(rf"\A(?!(?:{own})\z)") if own else Regex(r"\A")
        steps.append(normalizers.Replace(start, SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return steps[0] if len(steps) == 1 else normalizers.Sequence(steps)


def _user_defined(pieces: Pieces) -> list[str]:
    kinds = zip(pieces.tokens, pieces.kinds, strict=True)
    return [token for token, kind in kinds if kind == USER_DEFINED]


def _added(pieces: Pieces, normalizer: Any) -> list[Any]:
    """Returns what text is cut at first: special tokens, and pieces of users.

    The latter are looked for in the normalized text, as SentencePiece does (in a
    unigram model their scores see to it). One that is not in its normal form is looked
    for before, where that comes to the same.
    """
    from tokenizers import AddedToken

    added = []
    # The library's unigram model knows no piece that text cannot become.
    special = (UNKNOWN, CONTROL, UNUSED) if pieces.unigram else (UNKNOWN, CONTROL)
    for token, kind in zip(pieces.tokens, pieces.kinds, strict=True):
        if kind in special:
            added.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            normal = normalizer.normalize_str(token) == token
            if pieces.prefix and not normal:
                raise errors.DataError(
                    f"the piece {json.dumps(token)} of the user is changed by the "
                    "model's own normalization, and texts begin with a space: that "
                    "cannot be expressed; give a tokenizer.json"
                )
            if pieces.unigram and normal:
                continue  # its score decides
            added.append(AddedToken(token, special=False, normalized=normal))
    return added
