"""Records → examples: token ids, each with its weight in the loss.

    format             fields of a record                      what is learned
    text               text                                    all of it
    messages           messages                                assistants' turns
    prompt_completion  prompt, completion                      the completion
    translation        source, target, and their languages     the target
    infill             text                                    all, its middle last
    span_corruption    text                                    spans that were taken out
    prefix             text                                    the rest, after a cut
    preference         prompt, chosen, rejected                both completions

A format knows which fields it takes, what is wrong with a record before there is a
tokenizer, and how to encode one. Which record has which field, and what becomes of an
example, is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from lmx.core.errors import UserError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.denoising import PREFIX, SPAN_CORRUPTION
from lmx.inputs.example import (
    Encoder,
    Example,
    Format,
    Record,
    complete,
    converse,
    message_problem,
    says_something,
)
from lmx.inputs.preference import PREFERENCE
from lmx.inputs.tokenizers import Tokenizer

INFILL_SPECIALS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
INFILL_NAMES = (
    INFILL_SPECIALS,
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)
INFILL_SHARE = 0.5  # of documents that are cut; half of them have the suffix first

# For tokenizers without a template. No message can spell the token that ends a turn.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: "
    "{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_template(tokenizer: Tokenizer, source: str | None = None) -> ChatTemplate:
    """Returns the chat template of a tokenizer: `source`, or a plain one."""
    return ChatTemplate(
        PLAIN_TEMPLATE if source is None else source,
        bos_token=tokenizer.token(tokenizer.bos_id) or "",
        eos_token=tokenizer.token(tokenizer.eos_id) or "",
    )


def _text_problem(record: Record) -> str | None:
    return None if record["text"].strip() else "no text"


def _messages_problem(record: Record) -> str | None:
    messages = record["messages"]
    if (problem := message_problem(messages, name="messages")) is not None:
        return problem
    if not says_something(messages):
        return "no assistant turn with a loss: nothing is learned"
    return None


def _messages(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    return lambda record: [converse(tokenizer, template, record["messages"])]


def _pair_problem(first: str, second: str) -> Callable[[Record], str | None]:
    def problem(record: Record) -> str | None:
        if not record[second].strip():
            return f"{second} is empty: nothing is learned"
        return None if record[first] else f"{first} is empty"

    return problem


def _prompt_completion(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    del template  # a completion is no turn
    return lambda r: [complete(tokenizer, r["prompt"], r["completion"])]


def _translation(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    encode = _prompt_completion(tokenizer, template)

    def translate(record: Record) -> Sequence[Example]:
        prompt = (
            f"{record['source_language']}: {record['source']}\n"
            f"{record['target_language']}:"
        )
        return encode({"prompt": prompt, "completion": f" {record['target']}"})

    return translate


def _infill(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    """Returns the encoder of Bavarian et al., "Efficient training of language models to
    fill in the middle", 2022: cut between characters, each part encoded on its own.
    """
    del template
    ids_of = {t.content: index for index, t in tokenizer.special_tokens.items()}
    found = [names for names in INFILL_NAMES if all(name in ids_of for name in names)]
    if not found or tokenizer.begins_with_space:
        raise UserError(
            "format 'infill' needs a tokenizer with the special tokens "
            f"{', '.join(INFILL_SPECIALS)} that does not begin texts with a space; set "
            "tokenizer='bpe' to train one"
        )
    before, after, middle = (ids_of[name] for name in found[0])

    def encode(record: Record) -> list[Example]:
        text = record["text"]
        kind, first, last = _cuts(text)
        parts = [text] if not kind else [text[:first], text[last:], text[first:last]]
        ids = tokenizer.encode_batch(parts)
        if kind == "prefix":
            body = [before, *ids[0], after, *ids[1], middle, *ids[2]]
        elif kind == "suffix":
            body = [before, after, *ids[1], middle, *ids[0], *ids[2]]
        else:
            body = ids[0]
        whole = [tokenizer.bos_id, *body, tokenizer.eos_id]
        return [Example(whole, [0, *[1] * (len(whole) - 1)], len(text.encode()))]

    return encode


def _cuts(text: str) -> tuple[str, int, int]:
    """Returns which part comes first, '' for a text that is not cut, and both cuts.

    They depend on nothing but the text.
    """
    content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    drawn = [int.from_bytes(content[i : i + 8], "big") for i in (0, 8, 16, 24)]
    if drawn[0] >= INFILL_SHARE * 2**64 or not text:
        return "", 0, 0
    first, last = sorted(number % (len(text) + 1) for number in drawn[1:3])
    return ("suffix" if drawn[3] % 2 else "prefix"), first, last


FORMATS: dict[str, Format | None] = {
    "text": None,  # a document of the store as it is
    "messages": Format(
        ("messages",), _messages_problem, _messages, messages=("messages",)
    ),
    "prompt_completion": Format(
        ("prompt", "completion"),
        _pair_problem("prompt", "completion"),
        _prompt_completion,
    ),
    "translation": Format(
        ("source", "target", "source_language", "target_language"),
        _pair_problem("source", "target"),
        _translation,
    ),
    "infill": Format(("text",), _text_problem, _infill, INFILL_SPECIALS),
    "span_corruption": SPAN_CORRUPTION,
    "prefix": PREFIX,
    "preference": PREFERENCE,
}
