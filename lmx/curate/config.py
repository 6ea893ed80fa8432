"""Every option of a build of training data, with its type, default and meaning.

A file in experiments/data edits a ConfigDict of these, as an experiment does with
`lmx.core.schema`; `build_config` checks it. How many processes work, and in how many
shards, is not here: it does not change the result.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lmx.core.config import freeze_section
from lmx.core.errors import UserError, did_you_mean, pick
from lmx.core.knob import knob
from lmx.data.columns import RESERVED
from lmx.inputs.examples import FORMATS

USES = ("train", "commercial", "redistribute")
DUPLICATES = ("exact", "near")
SPLITS = ("train", "validation")
# '*' is all, and those by which one is told from the crawlers of search engines.
CRAWLERS = (
    "*",
    "AI2Bot",
    "Amazonbot",
    "anthropic-ai",
    "Applebot-Extended",
    "Bytespider",
    "CCBot",
    "ChatGPT-User",
    "Claude-Web",
    "ClaudeBot",
    "cohere-ai",
    "Diffbot",
    "FacebookBot",
    "Google-Extended",
    "GPTBot",
    "img2dataset",
    "meta-externalagent",
    "omgili",
    "PanguBot",
    "PerplexityBot",
    "Timpibot",
)
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of documents: where it is, what it is called, what one may do."""

    path: str = knob(
        "",
        "A folder or a file of text or records; a URL of one, such as s3://, gs:// or "
        "hf://; hf:OWNER/NAME, a data set of the Hugging Face Hub; or a TFDS name.",
    )
    files: str = knob("*", "Of a folder, only files whose name fits, as in '*.py'.")
    text: str = knob(
        "{text}",
        "A document as a template: names in braces are fields of a record; a list of "
        "messages becomes lines of 'role: content'.",
    )
    format: str = knob(
        "text",
        "'text', or what the records are examples of, with a loss on a part of them: "
        "'messages', 'prompt_completion', 'translation', 'infill', "
        "'span_corruption', 'prefix', 'preference'.",
    )
    fields: dict[str, str] = dataclasses.field(
        default_factory=dict,
        metadata={
            "doc": "Of a format other than 'text': its fields as templates of those of "
            "a record, such as {'prompt': '{text}\\nSummary:'}; else of their names."
        },
    )
    columns: dict[str, str] = dataclasses.field(
        default_factory=dict,
        metadata={
            "doc": "What documents carry along: name → field of a record that holds "
            "bytes, or base64 in JSON, such as {'image': 'jpeg'}. Which documents are "
            "alike, their texts decide."
        },
    )
    licence: str = knob("", "Licence of the texts, best as an SPDX name; required.")
    uses: tuple[str, ...] = knob(
        (), "What the licence allows: 'train', 'commercial', 'redistribute'."
    )
    origin: str = knob("", "Where it was got, for the data card.")
    url: str = knob(
        "{url}",
        "A document's address as a template, for opt-outs; records need not have it.",
    )
    max_documents: int | None = knob(None, "Take only the first so many records.")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Texts that models are measured on, which training must not hold."""

    path: str = knob("", "A folder or a file of text or records, or a URL of one.")
    text: str = knob("{text}", "What may leak, as a template like a source's.")


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What goes into a store of tokens, and what must not."""

    uses: tuple[str, ...] = knob(
        ("train",),
        "What it is for; a source that does not allow that is refused.",
    )
    sources: dict[str, SourceConfig] = dataclasses.field(
        default_factory=dict, metadata={"doc": "Name → source."}
    )
    prefer: tuple[str, ...] = knob(
        (),
        "Sources that keep their copy of what others hold too, the first before the "
        "second; the rest follows by name.",
    )
    removals: str | None = knob(
        None,
        "File of documents to leave out, one a line: 'source/name', or the sha256 of "
        "a text.",
    )
    optouts: str | None = knob(
        None,
        "File of domains, or beginnings of addresses, whose documents are left out.",
    )
    crawlers: tuple[str, ...] = knob(
        CRAWLERS,
        "Crawlers whose refusals are honoured, in robots.txt and on pages; () honours "
        "none.",
    )
    robots: str | None = knob(
        None,
        "Folder of HOST/robots.txt or HOST.txt, beside those that archives hold.",
    )
    masks: tuple[str, ...] = knob(
        (), "Personal data to mask: 'email', 'phone', 'ip', 'card', 'iban'."
    )
    filters: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=dict,
        metadata={"doc": "Name of a filter → its settings."},
    )
    evaluations: dict[str, EvaluationConfig] = dataclasses.field(
        default_factory=dict,
        metadata={"doc": "Name → texts whose n-grams no document may hold."},
    )
    evaluation_words: int = knob(13, "Words n of those n-grams.")
    duplicates: tuple[str, ...] = knob(
        DUPLICATES, "Which duplicates are left out: 'exact', 'near'."
    )
    near_similarity: float = knob(0.8, "Jaccard similarity from which two are near.")
    repeated_words: int | None = knob(
        None,
        "Cut from texts passages of so many words that an earlier one holds (50: Lee).",
    )
    validation_fraction: float = knob(0.05, "Share of documents held out.")
    tokenizer: str = knob(
        "bpe",
        "'byte', 'char', 'word', 'bpe' or 'unigram', trained on what is kept; or the "
        "path of a tokenizer.json.",
    )
    vocab_size: int = knob(4096, "Vocabulary to train, special tokens included.")
    bad_records: float = knob(
        0.01, "Share of a source's records that may be damaged; they are counted."
    )


def default_build_config() -> ConfigDict:
    """Returns every option of a build at its default; sources are added by name."""
    config = ConfigDict(dataclasses.asdict(BuildConfig()), type_safe=False).lock()
    for name in ("sources", "filters", "evaluations"):
        config[name].unlock()
    return config


def build_config(config: ConfigDict | Mapping) -> BuildConfig:
    """Returns the checked config; a `UserError` names the first wrong value."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    checked = freeze_section(values, BuildConfig)
    if not checked.sources:
        raise UserError(
            "sources is empty; add one: config.sources.NAME = dict(path=…, licence=…, "
            "uses=('train',))"
        )
    for name, source in checked.sources.items():
        _check_source(name, source)
    _check_names("uses", checked.uses, USES)
    _check_names("prefer", checked.prefer, tuple(checked.sources))
    if checked.repeated_words is not None and checked.repeated_words < 10:
        raise UserError(
            f"repeated_words={checked.repeated_words} must be 10 or more: shorter "
            "passages are idioms"
        )
    _check_names("duplicates", checked.duplicates, DUPLICATES)
    _check_crawlers(checked)
    for key in ("validation_fraction", "bad_records", "near_similarity"):
        value = getattr(checked, key)
        if not 0 <= value <= 1:
            raise UserError(f"{key}={value} must lie between 0 and 1")
    if checked.near_similarity in (0, 1):
        raise UserError(
            f"near_similarity={checked.near_similarity} must lie between 0 and 1; "
            "for none, leave 'near' out of duplicates"
        )
    if checked.validation_fraction == 1:
        raise UserError("validation_fraction=1.0 leaves nothing to train on")
    try:
        json.dumps(checked.filters)
    except TypeError as error:
        raise UserError(f"filters: {error}; settings are what JSON can hold") from error
    return checked


def preferred(config: BuildConfig) -> list[str]:
    """Returns the names of the sources, those that keep their copies first."""
    rest = sorted(set(config.sources) - set(config.prefer))
    return [*dict.fromkeys(config.prefer), *rest]


def _check_source(name: str, source: SourceConfig) -> None:
    if not NAME.fullmatch(name):
        raise UserError(
            f"source name {name!r} must be lower-case letters, digits and '_'"
        )
    if name in SPLITS:
        raise UserError(f"a source cannot be called {name!r}, as a split is; rename it")
    if source.max_documents is not None and source.max_documents < 1:
        raise UserError(
            f"sources.{name}.max_documents={source.max_documents} must be 1 or more"
        )
    for key in ("path", "licence"):
        if not getattr(source, key).strip():
            raise UserError(
                f"sources.{name}.{key} is empty; every source says where it is and "
                "under which licence"
            )
    _check_names(f"sources.{name}.uses", source.uses, USES)
    form = pick(FORMATS, source.format, f"sources.{name}.format")
    if form is None and source.fields:
        raise UserError(f"sources.{name}.fields is not for format 'text'; set text")
    if form is not None and source.text != SourceConfig.text:
        raise UserError(
            f"sources.{name}.text={source.text!r} is for format 'text', not "
            f"{source.format!r}; set sources.{name}.fields"
        )
    if source.format == "messages" and not re.fullmatch(
        r"\{\w+\}", source.fields.get("messages", "{messages}")
    ):
        raise UserError(
            f"sources.{name}.fields.messages must be one field, such as "
            "'{conversation}'"
        )
    _check_names(f"sources.{name}.fields", source.fields, form.fields if form else ())
    for column in source.columns:
        if not NAME.fullmatch(column) or column in RESERVED:
            raise UserError(
                f"sources.{name}.columns: {column!r} must be lower-case letters, "
                f"digits and '_', and not {', '.join(RESERVED)}; rename it"
            )


def _check_crawlers(config: BuildConfig) -> None:
    for name in config.crawlers:
        if not re.fullmatch(r"[\w.*-]+", name):
            raise UserError(
                f"crawlers names {name!r}, and no robots.txt can; write a name such as "
                "'GPTBot', or '*'"
            )
    if config.robots is not None and not config.crawlers:
        raise UserError(
            f"robots={config.robots!r} is not read where crawlers=() honours none; "
            "name crawlers, or leave robots out"
        )


def _check_names(key: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{key} names {name!r}{did_you_mean(name, known)}")
