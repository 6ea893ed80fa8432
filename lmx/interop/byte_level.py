"""Byte-level merges: what cuts text before them, by the family that was trained so.

A vocabulary and its merges do not say how text is cut, and a guess would give other ids
than the model was trained on. So each way has a name here, and others are refused
where they are read. No file is opened here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

DIGITS, GPT2 = "digits", "gpt2"  # steps that the library has itself


@dataclasses.dataclass(frozen=True)
class Form:
    """How text becomes pieces, of which each is merged alone.

    Attributes:
      steps: what cuts it in turn: single digits, GPT-2's pattern, or a pattern.
      whole_words: a piece that is a token needs no merges.
      nfc: text is composed first.
    """

    steps: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False


def _words(digits: str, spaces: str = r"\s*[\r\n]+|\s+(?!\S)|\s+") -> str:
    r"""Returns the pattern that cl100k, Llama 3 and Qwen 2 share but for these two.

    In order: contractions; letters with one sign before; `digits`; signs with the line
    ends after; `spaces`: line ends, spaces but the last before a word, other spaces.
    """
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        rf"|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        rf"|{spaces}"
    )


def _cased_words() -> str:
    """Returns o200k's pattern: words are cut where small letters become capitals."""
    before, after = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    large, small = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (
        rf"{before}{large}*{small}+{after}"
        rf"|{before}{large}+{small}*{after}"
        r"|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


FORMS: dict[str, Form] = {
    "gpt2": Form((GPT2,)),
    "smollm": Form((DIGITS, GPT2)),
    "qwen2": Form((_words(r"\p{N}"),), nfc=True),
    "llama3": Form((_words(r"\p{N}{1,3}"),), whole_words=True),
    # tiktoken takes a piece that is a token whole. cl100k's spaces that end a text are
    # one piece, line ends among them.
    "qwen": Form((_words(r"\p{N}"),), whole_words=True, nfc=True),
    "cl100k": Form(
        (_words(r"\p{N}{1,3}", r"\s+\z|\s*[\r\n]+|\s+(?!\S)|\s+"),), whole_words=True
    ),
    "o200k": Form((_cased_words(),), whole_words=True),
}


def byte_level(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], form: Form
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a vocabulary in the byte alphabet."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(vocab), merges=list(merges), ignore_merges=form.whole_words
        )
    )
    if form.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(form)
    backend.decoder = decoders.ByteLevel()
    return backend


def pre_tokenizer(form: Form) -> Any:
    """Returns what cuts text, as the library's object."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    for step in form.steps:
        if step == DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != GPT2:
            steps.append(pre_tokenizers.Split(Regex(step), "isolated"))
    use_regex = GPT2 in form.steps
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
