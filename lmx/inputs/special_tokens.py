"""Which tokens are special, and that plain text never becomes one of them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.core import errors

if TYPE_CHECKING:
    import tokenizers

PAD, BOS, EOS, UNK = "<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"
SPECIALS = (PAD, BOS, EOS)

# What other tokenizers call the same three, in order of preference.
FOREIGN = {
    BOS: (BOS, "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]"),
    EOS: (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]"),
    PAD: (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
}


def keep_apart(backend: tokenizers.Tokenizer) -> None:
    """Makes text that spells a special token be read as text.

    That the library does not look for special tokens is not enough where its model
    takes whole words out of its vocabulary, in which they are: such a word is cut after
    its first character.
    """
    from tokenizers import Regex, pre_tokenizers

    added = backend.get_added_tokens_decoder().values()
    cut, model = backend.pre_tokenizer, backend.model
    unigram = type(model).__name__ == "Unigram"
    if not unigram and not getattr(model, "ignore_merges", False):
        return
    whole = [
        token.content
        for token in added
        if token.special
        if cut is None or len(cut.pre_tokenize_str(token.content)) == 1
    ]
    if unigram:
        whole = [name.replace(" ", "▁") for name in whole]
    ends = defaultdict(set)
    for name in whole:
        ends[name[0]].add(re.escape(name[1:]))
    if unigram and backend.token_to_id("<0x00>") is not None:
        ends["<"].add("0x[0-9A-F]{2}>")
    if not ends:
        return
    pattern = "|".join(
        f"{re.escape(first)}(?={'|'.join(sorted(rest))})"
        for first, rest in sorted(ends.items())
    )
    guard = pre_tokenizers.Split(Regex(pattern), "isolated")
    steps = [guard] if cut is None else [cut, guard] if unigram else [guard, cut]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def foreign_meta(content: str, file: Path) -> dict[str, Any]:
    """Finds the special tokens of a tokenizer that was made elsewhere."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(content)
    found = {}
    for ours, names in FOREIGN.items():
        ids = (backend.token_to_id(name) for name in names)
        found[ours] = next((index for index in ids if index is not None), None)
    if found[EOS] is None:
        raise errors.DataError(
            f"{file} has no end-of-document token; it must have one of "
            f"{', '.join(FOREIGN[EOS])}"
        )
    bos, pad = found[BOS], found[PAD]
    return {
        "kind": "foreign",
        "eos_id": found[EOS],
        "bos_id": found[EOS] if bos is None else bos,
        "pad_id": found[EOS] if pad is None else pad,
        "unk_id": None,
    }
