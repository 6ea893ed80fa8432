"""The tokenizer of a Hugging Face directory: its text, special ids and chat template.

Where there is no tokenizer.json, one is made of the files that were before it:
SentencePiece's, GPT-2's or tiktoken's.

Which ids are special is scattered: tokenizer_config.json names tokens, config.json and
generation_config.json give ids. The last says what ends a reply, often several tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx.core.errors import DataError
from lmx.core.text_files import read_json, read_text
from lmx.inputs.chat_files import read_template
from lmx.inputs.tokenizers import Tokenizer
from lmx.interop import sentencepieces
from lmx.interop.added_tokens import added_tokens, begin_with, extended, mark
from lmx.interop.byte_level import FORMS, byte_level
from lmx.interop.sentencepiece_file import SentencePieceFile, read_sentencepieces
from lmx.interop.sentencepieces import CONTROL, USER_DEFINED, Pieces
from lmx.interop.vocab_files import (
    form_of_merges,
    form_of_ranks,
    is_ranks,
    read_ranks,
    read_vocab_and_merges,
)

if TYPE_CHECKING:
    import tokenizers

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # the first counts
# Ours → theirs; encoders begin and end a text with tokens of other names.
NAMES = {
    "bos": ("bos", "cls"),
    "eos": ("eos", "sep"),
    "pad": ("pad",),
    "unk": ("unk",),
}
# These end a turn wherever a chat template writes them. Some models were published
# without saying so (Gemma 1, the first Llama 3), and talk on for both sides.
TURN_ENDS = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>")


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], *, file: Path | None = None
) -> tuple[Tokenizer, str | None]:
    """Returns the tokenizer of a Hugging Face directory, and its chat template.

    `config` is the content of its config.json; `file` is that of its files that holds
    the vocabulary, None for the first of `FILES`. Raises a `DataError` for a file that
    is missing or damaged.
    """
    settings = _settings(folder)
    file = file or next((folder / n for n in FILES if (folder / n).exists()), None)
    file = file or next(iter(sorted(folder.glob("*.tiktoken"))), None)
    if file is None:
        raise DataError(
            f"{folder} has no tokenizer: none of {', '.join(FILES)} and no *.tiktoken; "
            "download it with one"
        )
    configs = [_optional(folder / "generation_config.json"), config]
    if file.name == "tokenizer.json":
        text = read_text(file)
        backend = backend_of(text, str(file))
        ids = _special_ids(backend, settings, configs)
    else:
        backend, ids = _built(file, settings, configs)
        text = backend.to_str()
    bare, whole = (backend.encode("a", add_special_tokens=x).ids for x in (False, True))
    ids["add_bos"] = whole[:1] == [ids["bos_id"]]
    ids["suffix_ids"] = whole[ids["add_bos"] + len(bare) :]
    template = read_template(folder)
    return make_tokenizer(text, ids, template=template, where=str(file)), template


def _built(
    file: Path, settings: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Returns the tokenizer that another file than a tokenizer.json says, and its ids.

    A file says nothing of BOS; where tokenizer_config.json does not either, the models
    that came with such files decide: SentencePiece's and Llama 3's begin with it.
    """
    older = _optional(file.parent / "added_tokens.json")
    added = added_tokens(older, settings, where=str(file))
    try:
        if file.suffix == ".model" and not is_ranks(file):
            found = read_sentencepieces(file)
            settings = {**found.specials, **settings}
            backend, begins = (
                sentencepieces.build(_with_added(found, added, file)),
                True,
            )
        else:
            form, tokens, merges = _read_merges(file, configs[-1], settings)
            tokens = extended(tokens, added, where=str(file))
            vocab = {token: index for index, token in enumerate(tokens)}
            backend, begins = byte_level(vocab, merges, FORMS[form]), form == "llama3"
        ids = _special_ids(backend, settings, configs)
        bos, eos = ids["bos_id"], ids["eos_id"]
        mark(backend, added, settings, [i for i in (bos, eos) if i is not None])
        if settings.get("add_bos_token", begins) is True and bos is not None:
            begin_with(backend, str(backend.id_to_token(bos)), bos)
    except DataError as error:
        if str(file.parent) in str(error):
            raise
        raise DataError(f"{file}: {error}") from error
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{file} makes no tokenizer ({error}); download it again"
        ) from error
    return backend, ids


def _read_merges(
    file: Path, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Returns the name of the form, the token of each id, and the merges."""
    if file.name == "vocab.json":
        if settings.get("add_prefix_space") is True:
            raise DataError(
                f"{file.parent}/tokenizer_config.json: add_prefix_space=true is not "
                "supported with vocab.json; give a tokenizer.json"
            )
        return form_of_merges(config, settings), *read_vocab_and_merges(file.parent)
    return form_of_ranks(file, config), *read_ranks(file)


def _with_added(
    found: SentencePieceFile, added: Mapping[int, tokenizers.AddedToken], file: Path
) -> Pieces:
    """Returns the pieces with the added tokens at their ids."""
    pieces = found.pieces
    tokens = extended(pieces.tokens, added, where=str(file))
    kinds = [*pieces.kinds, *[CONTROL] * (len(tokens) - len(pieces.tokens))]
    for index, token in added.items():
        if index >= len(pieces.tokens) and not token.special:
            kinds[index] = USER_DEFINED
    scores = np.zeros(len(tokens))
    scores[: len(pieces.scores)] = pieces.scores
    return dataclasses.replace(pieces, tokens=tokens, kinds=kinds, scores=scores)


def make_tokenizer(
    text: str, ids: Mapping[str, Any], *, template: str | None, where: str
) -> Tokenizer:
    """Returns the tokenizer of the `text` of a tokenizer.json.

    `ids` are bos_id, eos_id and pad_id (None where there is none: the end-of-text token
    stands in), add_bos, in eos_ids all that end a text, and in suffix_ids what a whole
    one ends with.
    """
    eos, bos, pad = (ids[name] for name in ("eos_id", "bos_id", "pad_id"))
    if eos is None:
        raise DataError(f"{where} names no end-of-text token; lmx needs one")
    special = backend_of(text, where).get_added_tokens_decoder()
    turn_ends = [
        index
        for index, token in special.items()
        if token.special and token.content in TURN_ENDS
        if token.content in (template or "")
    ]
    meta = {
        "kind": "foreign",
        "eos_id": eos,
        "eos_ids": list(dict.fromkeys([eos, *ids["eos_ids"], *turn_ends])),
        "bos_id": eos if bos is None else bos,
        "pad_id": eos if pad is None else pad,
        "unk_id": None,
        "prefix_ids": [bos] if ids["add_bos"] else [],
        "suffix_ids": ids.get("suffix_ids", []),
    }
    return Tokenizer(text, meta)


def backend_of(text: str, where: str) -> tokenizers.Tokenizer:
    """Returns what the `tokenizers` library makes of the text of a tokenizer.json."""
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{where} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_ids(
    backend: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    configs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns what `make_tokenizer` takes; the first of `configs` that says counts."""
    ids: dict[str, Any] = {}
    for name, theirs in NAMES.items():
        tokens = (settings.get(f"{other}_token") for other in theirs)
        token = next((token for token in tokens if token is not None), None)
        token = token.get("content") if isinstance(token, dict) else token
        index = backend.token_to_id(token) if isinstance(token, str) else None
        values = (config.get(f"{name}_token_id") for config in configs)
        value = next((value for value in values if value is not None), None)
        listed = value if isinstance(value, list) else [value]
        known = [i for i in [index, *listed] if _known(backend, i)]
        ids[f"{name}_id"] = known[0] if known else None
        if name == "eos":
            ids["eos_ids"] = known
    return ids


def _known(backend: tokenizers.Tokenizer, index: Any) -> bool:
    whole = type(index) is int and 0 <= index < 2**31
    return whole and backend.id_to_token(index) is not None


def _settings(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json, completed by the older special_tokens_map.json."""
    settings = _optional(folder / "special_tokens_map.json")
    newer = _optional(folder / "tokenizer_config.json")
    return settings | {k: value for k, value in newer.items() if value is not None}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
