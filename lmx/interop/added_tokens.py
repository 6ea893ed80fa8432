"""Tokens that stand beside a vocabulary: special ones, and what begins a text.

A folder tells of them in added_tokens.json (older) and in tokenizer_config.json
(`added_tokens_decoder`). A tokenizer.json holds them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmx.core.errors import DataError

if TYPE_CHECKING:
    import tokenizers

FLAGS = ("single_word", "lstrip", "rstrip")


def added_tokens(
    older: Mapping[str, Any], settings: Mapping[str, Any], *, where: str
) -> dict[int, tokenizers.AddedToken]:
    """Returns the added tokens by id, of added_tokens.json and tokenizer_config.json.

    Raises a `DataError` that begins with `where` for an entry that is none.
    """
    from tokenizers import AddedToken

    special = _special_names(settings)
    entries: dict[Any, Any] = {
        index: {"content": content, "special": content in special}
        for content, index in older.items()
    }
    newer = settings.get("added_tokens_decoder", {})
    if not isinstance(newer, dict):
        raise DataError(f"{where}: added_tokens_decoder is no table")
    entries |= {int(k) if k.isdecimal() else k: value for k, value in newer.items()}
    found = {}
    for index, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        whole = type(index) is int and 0 <= index < 2**31
        if not (whole and isinstance(content, str) and content):
            raise DataError(
                f"{where}: the added token {index!r:.40} is {entry!r:.80}; it must be "
                "an id with its content"
            )
        flags = {flag: entry.get(flag) is True for flag in FLAGS}
        plain = entry.get("special") is not True
        found[index] = AddedToken(content, special=not plain, normalized=plain, **flags)
    return found


def _special_names(settings: Mapping[str, Any]) -> set[str]:
    """Returns the tokens that a tokenizer_config.json names as special."""
    values: list[Any] = [v for k, v in settings.items() if k.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or []
        values += more.values() if isinstance(more, dict) else more
    contents = (v.get("content") if isinstance(v, dict) else v for v in values)
    return {content for content in contents if isinstance(content, str)}


def extended(
    tokens: Sequence[str],
    added: Mapping[int, tokenizers.AddedToken],
    *,
    where: str,
) -> list[str]:
    """Returns the vocabulary with the added tokens at their ids.

    Ids between that have no token get a name of their own. Raises a `DataError` where
    an added token contradicts the vocabulary.
    """
    count = max([len(tokens), *(index + 1 for index in added)])
    # Gaps are rare: more of them than this is damage, not a vocabulary.
    if count > 2 * (len(tokens) + len(added)) + 1024:
        raise DataError(
            f"{where}: the added token {max(added)} is far beyond the {len(tokens)} "
            "of the vocabulary; it belongs to another one"
        )
    found = [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), count))]
    for index, token in added.items():
        if index < len(tokens) and tokens[index] != token.content:
            raise DataError(
                f"{where}: the added token {index} is {token.content!r:.60}, in the "
                f"vocabulary it is {tokens[index]!r:.60}; they belong to two models"
            )
        found[index] = token.content
    if len(set(found)) != len(found):
        raise DataError(
            f"{where}: a token is added under a second id; each must have one"
        )
    return found


def mark(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, tokenizers.AddedToken],
    settings: Mapping[str, Any],
    ids: Sequence[int] = (),
) -> None:
    """Makes the added tokens whole in text, and those special that are named so.

    `ids` are special too.
    """
    from tokenizers import AddedToken

    backend.add_tokens([added[index] for index in sorted(added)])
    names = {*_special_names(settings), *map(backend.id_to_token, ids)}
    known = backend.get_added_tokens_decoder()
    whole = {token.content for token in known.values() if token.special}
    more = [
        AddedToken(name, special=True, normalized=False)
        for name in sorted(name for name in names if name is not None)
        if name not in whole and backend.token_to_id(name) is not None
    ]
    backend.add_tokens(more)


def begin_with(backend: tokenizers.Tokenizer, token: str, index: int) -> None:
    """Makes every text begin with a token."""
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=[token, "$A"],
        pair=[token, "$A", f"{token}:1", "$B:1"],
        special_tokens=[(token, index)],
    )
