"""How a row of a batch looks in a terminal, and without one.

With colours, documents alternate between two, what has no loss is dim, special tokens
are reversed and padding is counted. Without, a text has brackets in place of colours.
Control characters are shown, not sent: a corpus must not command a terminal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from lmx.inputs.batch import Batch
from lmx.inputs.tokenizers import Tokenizer

COLOURS = ("cyan", "yellow")
_SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_SHOWN |= {0x7F: "␡"} | {code: "\ufffd" for code in range(0x80, 0xA0)}
# Marks that turn or hide the text around them.
_SHOWN |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


class Span(NamedTuple):
    """Neighbouring tokens that look alike."""

    document: int
    """1, 2, … in the row; 0 is padding."""
    supervised: bool
    special: bool
    ids: list[int]


def plain(console: Console) -> bool:
    """Returns whether there are no colours: in a pipe, or where NO_COLOR says so."""
    return console.no_color or not console.is_terminal


def legend(console: Console) -> Text:
    """Returns a line that says what the marks mean."""
    if plain(console):
        return Text("⟦without a loss⟧ <|special|> ⟨padding⟩")
    parts = [
        ("one document", COLOURS[0]),
        ("the next", COLOURS[1]),
        ("without a loss", f"{COLOURS[0]} dim"),
        ("<|special|>", f"{COLOURS[0]} reverse"),
        ("⟨padding⟩", "dim"),
    ]
    return Text(" · ").join([Text(text, style) for text, style in parts])


def rule(console: Console, text: str) -> Text:
    """Returns a line across the terminal that begins with a text."""
    line = f"── {visible(text)} "
    return Text(line + "─" * max(2, console.width - len(line)), "bold")


def counts_line(batch: Batch) -> str:
    """Returns how many tokens a batch has, and how many of them have a loss."""
    total = batch.tokens.size
    supervised = int(np.count_nonzero(batch.loss_weights))
    padding = int(np.count_nonzero(np.asarray(batch.segment_ids) == 0))
    return (
        f"{supervised:,} of {total:,} tokens supervised ({supervised / total:.1%}), "
        f"{padding:,} padding"
    )


def row_text(console: Console, batch: Batch, row: int, *, tokenizer: Tokenizer) -> Text:
    """Returns a row of a batch as text: its first token, then what it predicts."""
    without_colour = plain(console)
    text = Text()
    for span in spans(batch, row, tokenizer=tokenizer):
        if not span.document:
            text.append(f"⟨padding × {len(span.ids)}⟩", "" if without_colour else "dim")
            continue
        words = decoded(span, tokenizer)
        if without_colour:
            text.append(words if span.supervised else f"⟦{words}⟧")
            continue
        style = COLOURS[(span.document - 1) % len(COLOURS)]
        style += "" if span.supervised else " dim"
        text.append(words, style + (" reverse" if span.special else ""))
    return text


def spans(batch: Batch, row: int, *, tokenizer: Tokenizer) -> Iterator[Span]:
    """Yields the parts of a row; the first token is context and has no loss."""
    special = set(tokenizer.special_tokens)
    for (document, supervised, is_special), group in itertools.groupby(
        _tokens(batch, row, bos_id=tokenizer.bos_id),
        key=lambda token: (*token[1:], token[0] in special),
    ):
        ids = [token[0] for token in group]
        yield Span(document, supervised, is_special, ids)


def decoded(span: Span, tokenizer: Tokenizer) -> str:
    """Returns the text of a span, with what a terminal would obey made visible."""
    if span.special:
        text = "".join(str(tokenizer.token(index)) for index in span.ids)
    elif tokenizer.pieces is not None:
        pieces = b"".join(map(tokenizer.piece, span.ids))
        text = pieces.decode("utf-8", "replace")
    else:
        text = tokenizer.decode(span.ids)
    return visible(text)


def visible(text: str) -> str:
    """Returns a text of which a terminal obeys nothing but line ends and tabs."""
    return text.translate(_SHOWN)


def _tokens(batch: Batch, row: int, *, bos_id: int) -> Iterator[tuple[int, int, bool]]:
    """Yields (token, document, has a loss): first tokens, and each target.

    A document's first token is a target without a loss where another came before it in
    the stream, and none where documents are packed side by side.
    """
    tokens, targets, weights, segments, _ = (field[row].tolist() for field in batch)
    predicted = False
    for place, target in enumerate(targets):
        document = segments[place]
        begins = not place or document != segments[place - 1]
        if document and begins and not predicted:
            yield tokens[place], document, False
        predicted = False
        if document and not weights[place]:
            if place + 1 == len(segments):
                document += target == bos_id
            elif segments[place + 1] not in (0, document):
                predicted = target == tokens[place + 1]
                document = segments[place + 1] if predicted else document
        yield target, document, bool(weights[place])
