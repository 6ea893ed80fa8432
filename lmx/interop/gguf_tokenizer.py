"""The tokenizer inside a GGUF file ↔ the text of a tokenizer.json.

    tokenizer.ggml.model   what it is                                     read  written
    gpt2                   byte-level merges, split as ...ggml.pre says   yes   yes
    llama                  SentencePiece merges by score, byte fallback   yes   yes

A pre-tokenizer that is not known here is refused: a guess would give other ids than the
model was trained on, and nothing would say so. No file is opened here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx.core import errors
from lmx.inputs.token_bytes import BYTE_NAME, SPACE
from lmx.interop import sentencepieces
from lmx.interop.added_tokens import begin_with
from lmx.interop.byte_level import FORMS, Form, byte_level, pre_tokenizer
from lmx.interop.sentencepieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pieces,
)

if TYPE_CHECKING:
    import tokenizers

IDS = {
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "padding_token_id",
    "unk_id": "unknown_token_id",
}
# More that end a text: a turn, and a message to a tool.
MORE_ENDS = ("eot_token_id", "eom_token_id")


# What cuts text before the merges, by tokenizer.ggml.pre. A file without the key is
# older than the key and GPT-2's.
PRE: dict[str, Form] = {
    "gpt-2": FORMS["gpt2"],
    "default": FORMS["gpt2"],
    "smollm": FORMS["smollm"],
    "llama-bpe": FORMS["llama3"],
    "qwen2": FORMS["qwen2"],
}
BEGINS = ("llama-bpe",)  # BOS is added where the file does not say


def tokenizer_json(metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the text of a tokenizer.json and the special ids of GGUF `metadata`.

    The ids are bos_id, eos_id, pad_id and unk_id (an int, or None where the file names
    none), eos_ids (all that end a text) and add_bos. Raises a `DataError` for a model
    or pre-tokenizer that is not known and for a vocabulary that contradicts itself.
    """
    model = _word(metadata, "model", "")
    if model not in ("gpt2", "llama"):
        raise errors.DataError(
            f"tokenizer.ggml.model is {model!r}; only 'gpt2' and 'llama' can be read: "
            "give the tokenizer.json of the model instead"
        )
    tokens = _tokens(metadata)
    types = _numbers(metadata, "token_type", len(tokens))
    ids = _special_ids(metadata, model, len(tokens))
    if types is None:  # then only these can be known to be no text
        special = {ids[name] for name in ("bos_id", "eos_id")}
        kinds = [CONTROL if i in special else NORMAL for i in range(len(tokens))]
    else:
        kinds = [int(kind) for kind in types]
    try:
        build = _gpt2 if model == "gpt2" else _llama
        backend = build(metadata, tokens, kinds, ids)
        if ids["add_bos"]:
            begin_with(backend, tokens[ids["bos_id"]], ids["bos_id"])
        text = backend.to_str()
    except errors.DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise errors.DataError(
            f"the {model!r} tokenizer of the GGUF file is damaged ({error}); download "
            "or convert the file again"
        ) from error
    return text, ids


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _strings(metadata, "tokens")
    if len(set(tokens)) != len(tokens) or not tokens:
        raise errors.DataError(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens, {len(set(tokens))} of "
            "them different; each must be there once: convert the file again"
        )
    return tokens


def _word(metadata: Mapping[str, Any], name: str, default: str) -> str:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, str):
        raise errors.DataError(
            f"tokenizer.ggml.{name} is a {type(value).__name__}, not a string; convert "
            "the file again"
        )
    return value


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise errors.DataError(
            f"tokenizer.ggml.{name} is missing or not a list of strings; convert the "
            "file again"
        )
    return values


def _numbers(metadata: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
    """Returns one number for each token, or None where the file has none."""
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iuf":
        raise errors.DataError(
            f"tokenizer.ggml.{name} must have a number for each of the {count} tokens, "
            f"and has shape {array.shape} of {array.dtype}; convert the file again"
        )
    return array


def _special_ids(metadata: Mapping[str, Any], model: str, count: int) -> dict[str, Any]:
    # SentencePiece has always put these three first.
    usual = {"bos_id": 1, "eos_id": 2, "unk_id": 0} if model == "llama" else {}

    def read(name: str, default: int | None = None) -> int | None:
        index = metadata.get(f"tokenizer.ggml.{name}", default)
        whole = isinstance(index, int) and not isinstance(index, bool)
        if index is not None and not (whole and 0 <= index < count):
            raise errors.DataError(
                f"tokenizer.ggml.{name} is {index!r}; it must be an id below the "
                f"{count} of the vocabulary: convert the file again"
            )
        return index

    ids: dict[str, Any] = {
        ours: read(theirs, usual.get(ours)) for ours, theirs in IDS.items()
    }
    ends = [ids["eos_id"], *map(read, MORE_ENDS)]
    ids["eos_ids"] = [index for index in ends if index is not None]
    begins = model == "llama" or _word(metadata, "pre", "default") in BEGINS
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", begins)
    ids["add_bos"] = add_bos is True and ids["bos_id"] is not None
    return ids


def _gpt2(
    metadata: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    ids: Mapping[str, Any],
) -> tokenizers.Tokenizer:
    """Returns byte-level merges, with the steps of tokenizer.ggml.pre before them."""
    pre = _word(metadata, "pre", "default")
    if pre not in PRE:
        raise errors.DataError(
            f"tokenizer.ggml.pre is {pre!r}, a pre-tokenizer that is not known "
            f"(known: {', '.join(PRE)}); give the tokenizer.json of the model instead"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for merge in _strings(metadata, "merges"):
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise errors.DataError(
                f"tokenizer.ggml.merges has {merge[:80]!r}, which does not join two "
                "tokens to a third; convert the file again"
            )
        merges.append((left, right))
    backend = byte_level(vocab, merges, PRE[pre])
    _add_tokens(backend, tokens, kinds)
    return backend


def _llama(
    metadata: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    ids: Mapping[str, Any],
) -> tokenizers.Tokenizer:
    """Returns SentencePiece merges: of two neighbours, the best score joins first."""
    scores = _numbers(metadata, "scores", len(tokens))
    if scores is None:
        raise errors.DataError(
            "tokenizer.ggml.scores is missing, and a 'llama' tokenizer merges by "
            "them; convert the file again"
        )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    pieces = Pieces(
        tokens, kinds, scores.astype(np.float64), ids["unk_id"], prefix=prefix
    )
    return sentencepieces.build(pieces)


def _add_tokens(
    backend: tokenizers.Tokenizer, tokens: list[str], kinds: list[int]
) -> None:
    """Makes control and user-defined tokens whole: text is cut at them first."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    backend.add_tokens(added)


def tokenizer_metadata(
    text: str, ids: Mapping[str, Any], *, vocab_size: int | None = None
) -> dict[str, Any]:
    """Returns the `tokenizer.ggml.*` metadata of the `text` of a tokenizer.json.

    `ids` is what `tokenizer_json` returns; ids without a token, up to `vocab_size`
    (the rows of the embedding), become unused ones. Raises a `DataError` for any but
    byte-level merges with one of the pre-tokenizers of `PRE`, and SentencePiece merges.
    """
    import tokenizers

    try:
        content = json.loads(text)
        backend = tokenizers.Tokenizer.from_str(text)
        model = content["model"]
        kind = model["type"]
    except Exception as error:  # the library raises bare Exception
        raise errors.DataError(
            f"the text is not a tokenizer.json ({error}); give the content of one"
        ) from error
    if kind != "BPE":
        raise errors.DataError(
            f"a tokenizer of the model {kind} cannot be written to GGUF, only merges "
            "(BPE); export the model without it, or to safetensors"
        )
    tokens, types = _table(backend, vocab_size)
    # Older files hold a merge as one string, newer ones as a pair.
    merges = [
        tuple(merge.split(" ", 1) if isinstance(merge, str) else merge)
        for merge in model["merges"]
    ]
    found: dict[str, Any] = {"tokens": tokens, "token_type": types}
    if model.get("byte_fallback"):
        prefix = _has_prefix(content)
        types[:] = _piece_types(tokens, types, model.get("unk_token"))
        scores = _scores(Pieces(tokens, types, np.zeros(0), None), merges)
        found |= {"model": "llama", "pre": "default", "scores": scores}
        found["add_space_prefix"] = prefix
        if model.get("unk_token") is not None:
            found["unknown_token_id"] = backend.token_to_id(model["unk_token"])
    else:
        found |= {"model": "gpt2", "pre": _name_of(content)}
        found["merges"] = [" ".join(merge) for merge in merges]
    found["token_type"] = np.asarray(types, np.int32)
    for ours, theirs in IDS.items():
        if ids.get(ours) is not None:
            found[theirs] = int(ids[ours])
    ends = [index for index in ids["eos_ids"] if index != ids["eos_id"]]
    if len(ends) > len(MORE_ENDS):
        raise errors.DataError(
            f"{1 + len(ends)} tokens end a text, and GGUF has names for "
            f"{1 + len(MORE_ENDS)}; drop some of eos_ids in the tokenizer's meta.json"
        )
    found |= dict(zip(MORE_ENDS, ends, strict=False))
    found["add_bos_token"] = bool(ids.get("add_bos", False))
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def _has_prefix(content: Mapping[str, Any]) -> bool:
    """Returns whether SentencePiece merges begin a text with a space.

    Raises a `DataError` for what does more to a text than that and to mark spaces.
    """
    normalizer, cut = content.get("normalizer") or {}, content.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if cut and cut["type"] == "Metaspace" and not cut.get("split", True) and not steps:
        return cut["prepend_scheme"] != "never"
    *before, last = steps or [{}]
    marks = last.get("type") == "Replace" and last.get("pattern") == {"String": " "}
    begins = [
        step.get("type") == "Prepend"
        or (
            step.get("type") == "Replace"
            and str(step["pattern"].get("Regex", "")).startswith(r"\A")
            and step["content"] == SPACE
        )
        for step in before
    ]
    if cut is not None or not marks or len(begins) > 1 or not all(begins):
        raise errors.DataError(
            f"the normalizer {json.dumps(normalizer)[:200]} with the pre-tokenizer "
            f"{json.dumps(cut)[:100]} has no form in GGUF; export to safetensors"
        )
    return bool(begins)


def _piece_types(tokens: list[str], types: list[int], unknown: Any) -> list[int]:
    """Returns the types of SentencePieces: bytes and the unknown one have their own."""
    return [
        UNKNOWN
        if token == unknown
        else BYTE
        if kind == NORMAL and BYTE_NAME.fullmatch(token)
        else kind
        for token, kind in zip(tokens, types, strict=True)
    ]


def _scores(pieces: Pieces, merges: list[tuple[str, str]]) -> np.ndarray:
    """Returns scores of which the best are those of the first merges.

    Raises a `DataError` for merges that no scores can say.
    """
    order = {left + right: -i for i, (left, right) in reversed([*enumerate(merges)])}
    last = -float(len(merges))
    scores = np.asarray([order.get(token, last) for token in pieces.tokens])
    said = sentencepieces.merges_of(dataclasses.replace(pieces, scores=scores))
    joined = [left + right for left, right in merges]
    if [left + right for left, right in said] != joined or set(said) != set(merges):
        raise errors.DataError(
            "the merges are not all those of their tokens, one token after the other, "
            "as SentencePiece has them; GGUF has no form for others: export to "
            "safetensors"
        )
    return scores.astype(np.float32)


def _name_of(content: Mapping[str, Any]) -> str:
    """Returns the entry of `PRE` that cuts text as this tokenizer does."""
    words = bool(content["model"].get("ignore_merges"))
    normalizer = (content.get("normalizer") or {}).get("type")
    for name, form in PRE.items():
        same = _steps(content.get("pre_tokenizer")) == _steps(
            json.loads(pre_tokenizer(form).__getstate__())
        )
        composed = "NFC" if form.nfc else None
        if same and words == form.whole_words and normalizer == composed:
            return name
    shown = json.dumps(content.get("pre_tokenizer"))
    raise errors.DataError(
        f"the pre-tokenizer {shown[:200]} (normalizer {normalizer}, ignore_merges "
        f"{words}) has no name in GGUF among {', '.join(PRE)}, and llama.cpp cuts text "
        "only in ways that it has names for; those that lmx trains have none: export "
        "to safetensors, or train with the tokenizer.json of one that has"
    )


def _steps(node: Any) -> list[Any]:
    """Returns the steps of a pre-tokenizer, without what decides no id."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [step for inner in node["pretokenizers"] for step in _steps(inner)]
    return [{k: v for k, v in node.items() if k != "trim_offsets"}]


def _table(
    backend: tokenizers.Tokenizer, vocab_size: int | None
) -> tuple[list[str], list[int]]:
    """Returns the token and the type of each id."""
    vocab = backend.get_vocab(with_added_tokens=True)
    count = max(vocab.values(), default=-1) + 1
    # Gaps are rare: more of them than this is damage, not a vocabulary.
    if count > 2 * len(vocab) + 1024 or (vocab_size or count) < count:
        raise errors.DataError(
            f"the tokenizer has {len(vocab)} tokens with ids up to {count - 1}, which "
            f"vocab_size {vocab_size} does not fit; give {count} or more"
        )
    count = vocab_size or count
    tokens, types = [f"[PAD{i}]" for i in range(count)], [UNUSED] * count
    for token, index in vocab.items():
        tokens[index], types[index] = token, NORMAL
    for index, added in backend.get_added_tokens_decoder().items():
        types[index] = CONTROL if added.special else USER_DEFINED
    return tokens, types
