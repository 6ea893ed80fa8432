"""The language of a text, by py3langid (extra `data`), and the rule upon it.

It knows 97 languages by the bytes that are typical of them; of others, and of a few
words, it is unsure or wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmx.core.errors import UserError, did_you_mean

PARTS, PART_LENGTH = 3, 2000  # what is read of a long text: its start, middle and end


def detect(text: str) -> tuple[str, float]:
    """Returns the ISO 639-1 code of the likeliest language, and its probability."""
    identifier = _identifier()
    if len(text) > PARTS * PART_LENGTH:
        step = (len(text) - PART_LENGTH) // (PARTS - 1)
        parts = [text[i * step : i * step + PART_LENGTH] for i in range(PARTS)]
        text = "\n".join(parts)
    code, probability = identifier.classify(text)
    return str(code), float(probability)


def language(
    *, languages: Sequence[str] | Mapping[str, float], least: float = 0.65
) -> Callable[[str], str | None]:
    """Drops texts that are not in one of `languages` with enough probability.

    `languages` are ISO 639-1 codes, or a mapping from code to the least probability of
    that language; `least` (FineWeb's) is that of codes without one. Needs py3langid.
    """
    if isinstance(languages, str):
        languages = (languages,)
    if isinstance(languages, Mapping):
        thresholds = {code: float(value) for code, value in languages.items()}
    else:
        thresholds = dict.fromkeys(languages, least)
    known = [str(label) for label in _identifier().labels]
    for code in thresholds:
        if code not in known:
            raise UserError(f"unknown language {code!r}{did_you_mean(code, known)}")
    if not thresholds:
        raise UserError("language: languages=() keeps nothing; name at least one")

    def judge(text: str) -> str | None:
        code, probability = detect(text)
        if probability >= thresholds.get(code, 2.0):
            return None
        if code in thresholds:
            return f"language {code}, but only {probability:.0%} sure"
        return f"language {code}"

    return judge


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError(
            "the language of a text needs py3langid; install it: "
            "pip install 'lmx[data]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
