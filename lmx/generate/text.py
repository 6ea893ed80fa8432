"""Text in, text out: prompts are encoded, new tokens decoded, stop strings cut off.

A prompt is taken as the beginning of a document, as in training: its tokens follow the
tokenizer's BOS. What is emitted is final: half a code point, or text that may turn out
to begin a stop string, is held back. Tokens and caches are `decode.py`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from lmx.core.errors import UserError
from lmx.generate.beam import beam_search
from lmx.generate.decode import FinishReason, Generator, Session
from lmx.generate.sampling import SamplingConfig
from lmx.inputs.stream_decoder import StreamDecoder
from lmx.inputs.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
      text: the new text, without the stop string and what follows it.
      token_ids: the new tokens, up to the one that completed a stop string, and with
        the end token that ended the text.
      logprobs: natural log-probability of each token under the model itself.
      finish_reason: 'stop' (a stop string), 'eos' or 'length'.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def complete(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    sampling: SamplingConfig,
    *,
    rows: Sequence[int] | None = None,
) -> list[Completion]:
    """Returns the continuation of each prompt; prompt i draws from random stream i.

    A prompt is text, or token ids that are taken as they are. Any number of them: they
    go `generator.max_batch` at a time. `rows` are other numbers of the streams.
    """
    if isinstance(prompts, str):
        raise UserError(
            f"prompts={prompts[:40]!r} is one string; write [prompt] for one prompt"
        )
    encoded = encode_prompts(tokenizer, prompts)
    if sampling.beams > 1:
        return [_search(generator, tokenizer, ids, sampling) for ids in encoded]
    completions: list[Completion] = []
    for start in range(0, len(encoded), generator.max_batch):
        part = encoded[start : start + generator.max_batch]
        streams = (rows or range(len(encoded)))[start : start + len(part)]
        session = generator.start(part, sampling, rows=streams)
        writers = [_Writer(tokenizer, sampling.stop, generator.eos_ids) for _ in part]
        texts = [""] * len(part)
        while session.running:
            for i, piece in enumerate(_advance(session, writers)):
                texts[i] += piece
        texts = [
            text + writer.close() for text, writer in zip(texts, writers, strict=True)
        ]
        for text, writer, result in zip(texts, writers, session.results(), strict=True):
            reason: FinishReason = "stop" if writer.stopped else result.finish_reason
            completions.append(
                Completion(
                    text,
                    result.tokens[: writer.used],
                    result.logprobs[: writer.used],
                    reason,
                )
            )
    return completions


def stream(
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    sampling: SamplingConfig,
) -> Iterator[str]:
    """Yields the continuation of a prompt in pieces that join to `complete`'s text.

    A prompt is text, or token ids that are taken as they are.

    The first calls of the decode loop are short, so that the first word comes early;
    what beams find comes at once.
    """
    if sampling.beams > 1:
        yield complete(generator, tokenizer, [prompt], sampling)[0].text
        return
    session = generator.start(encode_prompts(tokenizer, [prompt]), sampling)
    writer = _Writer(tokenizer, sampling.stop, generator.eos_ids)
    steps = 1
    while session.running:
        (piece,) = _advance(session, [writer], steps)
        steps = min(2 * steps, generator.chunk)
        if piece:
            yield piece
    if last := writer.close():
        yield last


def _search(
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: SamplingConfig,
) -> Completion:
    """Returns the best continuation that beams find, cut at the first stop string."""
    best = beam_search(generator, prompt, sampling)[0]
    writer = _Writer(tokenizer, sampling.stop, generator.eos_ids)
    text = writer.write(best.tokens)
    text += writer.close()
    used = writer.used
    reason: FinishReason = "stop" if writer.stopped else best.finish_reason
    return Completion(text, best.tokens[:used], best.logprobs[:used], reason)


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]]
) -> list[list[int]]:
    """Returns the token ids of each prompt: text begins as a document of training."""
    return [
        [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
        if isinstance(prompt, str)
        else list(prompt)
        for prompt in prompts
    ]


def _advance(session: Session, writers: list[_Writer], steps: int | None = None):
    """Returns the text that the next tokens make final, and halts rows that stopped."""
    running = [session.is_running(i) for i in range(len(writers))]
    pieces = [""] * len(writers)
    for i, tokens in enumerate(session.advance(steps)):
        if running[i]:
            pieces[i] = writers[i].write(tokens)
            if writers[i].stopped:
                session.halt(i)
    return pieces


class StopScanner:
    """Finds stop strings in text that arrives in pieces of any size.

    The match that ends first wins, the longest of those that end together, so the cut
    does not depend on where the pieces are parted. `found` says whether there was one.
    """

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Returns the text that no stop string can contain any more."""
        if self.found:
            return ""
        held = self._held + text
        matches = [(at + len(s), at) for s in self._stop if (at := held.find(s)) >= 0]
        if matches:
            self.found, self._held = True, ""
            return held[: min(matches)[1]]
        safe = len(held) - self._pending(held)
        self._held = held[safe:]
        return held[:safe]

    def flush(self) -> str:
        """Returns what was held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _pending(self, held: str) -> int:
        """Returns the length of the longest end of `held` that may become a match."""
        longest = max((len(s) for s in self._stop), default=0)
        for length in range(min(longest - 1, len(held)), 0, -1):
            if any(s.startswith(held[-length:]) for s in self._stop):
                return length
        return 0


class _Writer:
    """Turns one row's tokens into final text; `used` of them are part of it."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], eos_ids: Sequence[int]
    ):
        self._decoder = StreamDecoder(tokenizer)
        self._scanner = StopScanner(stop)
        self._eos_ids = frozenset(eos_ids)
        self.used = 0

    @property
    def stopped(self) -> bool:
        return self._scanner.found

    def write(self, tokens: Sequence[int]) -> str:
        """Returns the text that `tokens` make final."""
        text = ""
        for token in tokens:
            self.used += 1
            if (
                token not in self._eos_ids
            ):  # one by one: the stop string's last one counts
                text += self._scanner.push(self._decoder.push([token]))
            if self.stopped:
                break
        return text

    def close(self) -> str:
        """Returns the text that was held back, once no token follows."""
        if self.stopped:
            return ""
        return self._scanner.push(self._decoder.flush()) + self._scanner.flush()
