"""The tokenizer of a Hugging Face directory: its text, special ids and chat template.

Which ids are special is scattered: tokenizer_config.json names tokens, config.json and
generation_config.json give ids. The last says what ends a reply, often several tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.core.errors import DataError
from lmx.inputs.tokenizers import Tokenizer
from lmx.interop.text_files import read_json, read_text

if TYPE_CHECKING:
    import tokenizers

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
    folder: Path, config: Mapping[str, Any]
) -> tuple[Tokenizer, str | None]:
    """Returns the tokenizer of a Hugging Face directory, and its chat template.

    `config` is the content of its config.json. Raises a `DataError` for a file that is
    missing or damaged.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        others = [n for n in ("tokenizer.model", "vocab.json") if (folder / n).exists()]
        raise DataError(
            f"{folder} has no tokenizer.json"
            f"{f' (it has {others[0]})' if others else ''}; save it with a fast "
            "tokenizer of transformers, which writes one"
        )
    text = read_text(file)
    settings = _settings(folder)
    backend = backend_of(text, str(file))
    ids = _special_ids(
        backend, settings, [_optional(folder / "generation_config.json"), config]
    )
    template = _chat_template(folder, settings)
    return make_tokenizer(text, ids, template=template, where=str(file)), template


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
    configs: Iterable[Mapping[str, Any]],
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
    bare, whole = (backend.encode("a", add_special_tokens=x).ids for x in (False, True))
    ids["add_bos"] = whole[:1] == [ids["bos_id"]]
    ids["suffix_ids"] = whole[ids["add_bos"] + len(bare) :]
    return ids


def _known(backend: tokenizers.Tokenizer, index: Any) -> bool:
    whole = type(index) is int and 0 <= index < 2**31
    return whole and backend.id_to_token(index) is not None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        template = read_text(jinja)
    if isinstance(template, list):  # several by name
        tables = [entry for entry in template if isinstance(entry, dict)]
        named = {entry.get("name"): entry.get("template") for entry in tables}
        template = named.get("default", template)
    if template is not None and not isinstance(template, str):
        raise DataError(
            f"{folder}/tokenizer_config.json: chat_template={template!r:.60} is no text"
        )
    return template


def _settings(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json, completed by the older special_tokens_map.json."""
    settings = _optional(folder / "special_tokens_map.json")
    newer = _optional(folder / "tokenizer_config.json")
    return settings | {k: value for k, value in newer.items() if value is not None}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
