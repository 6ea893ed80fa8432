"""Whether text comes back from every tokenizer that promises it, to the character.

    python benchmarks/tokenizer_round_trip.py [--cases=100000] [--model FILE.gguf …]

A case is a text and a list of ids, both drawn by hypothesis; each tokenizer takes each
case. The text may hold any code point, and words that spell special tokens, bytes and
line ends. Checked: the text comes back; no id of it is special; a stream fed in
parts shows beginnings of the text that join to it; and of any ids, broken UTF-8 among
them, the stream joins to what decoding them at once gives. Last line: `cases NUMBER
failed NUMBER`. What sentencepiece trains is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import base64
import functools
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lmx.inputs.stream_decoder import StreamDecoder
from lmx.inputs.token_bytes import from_byte_level
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer
from lmx.interop.gguf_file import GGUFFile
from lmx.interop.gguf_tokenizer import tokenizer_json
from lmx.interop.hf_tokenizer import make_tokenizer, read_tokenizer

CORPUS = [
    "def add(left, right):\n    return left + right  # it's 12345 + 67\n\n",
    "class Größe:\n\tpass\n\n\n        print('naïve 日本語 🙂')\r\n",
    "<|eos|> is only text, and so is <s>; the shells by the sea shore",
] * 4
SPELLED = ["<|eos|>", "<|bos|>", "<|pad|>", "<s>", "</s>", "<unk>", "<0x41>", "<0xFF>"]
SPELLED += ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "Ġ", "Ċ", "Ã"]
SPELLED += ["\u200d", "👩‍👩‍👧", "e\u0301"]
NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # in no UTF-8 text
PARTS = st.sampled_from([*SPELLED, " ", "  ", "\n", "\r\n", "\t", "'s", "the", "\0"])
TEXT = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | PARTS).map("".join)
IDS = st.lists(st.integers(-1, 2**20) | st.integers(0, 300), max_size=30)
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def exact_tokenizers(models: Sequence[Path] = ()) -> dict[str, Tokenizer]:
    """Returns every kind that promises exactness, and those of GGUF files."""
    found = {k: train_tokenizer(k, CORPUS, 400) for k in ("byte", "bpe", "unigram")}
    model = json.loads(found["bpe"].content)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)[3:]
    with tempfile.TemporaryDirectory() as temporary:
        for name, family in (
            ("vocab.json", "gpt2"),
            ("tokenizer.model", "llama"),
            ("cl100k_base.tiktoken", "-"),
            ("o200k_base.tiktoken", "-"),
        ):
            folder = Path(temporary) / name
            folder.mkdir()
            if name == "vocab.json":
                _write_merges(folder, tokens, model["merges"])
            else:
                _write_ranks(folder / name, tokens)
            found[name], _ = read_tokenizer(folder, {"model_type": family})
        if importlib.util.find_spec("sentencepiece"):
            for kind in ("bpe", "unigram"):
                folder = Path(temporary) / kind
                folder.mkdir()
                _write_pieces(folder / "tokenizer.model", kind)
                found[f"sentencepiece {kind}"], _ = read_tokenizer(folder, {})
    for path in models:
        metadata = GGUFFile(path).metadata
        text, ids = tokenizer_json(metadata)
        found[path.name] = make_tokenizer(text, ids, template=None, where=str(path))
    return found


def _write_merges(folder: Path, tokens: list[str], merges: list[list[str]]) -> None:
    vocab = {token: index for index, token in enumerate([*tokens, "<|end|>"])}
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf8")
    _write_end(folder, len(tokens))


def _write_ranks(path: Path, tokens: list[str]) -> None:
    encoded = (base64.b64encode(from_byte_level(token)) for token in tokens)
    lines = [b"%s %d\n" % (token, rank) for rank, token in enumerate(encoded)]
    path.write_bytes(b"".join(lines))
    _write_end(path.parent, len(tokens))


def _write_end(folder: Path, index: int) -> None:
    added = {str(index): {"content": "<|end|>", "special": True}}
    settings = {"eos_token": "<|end|>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf8")


def _write_pieces(path: Path, kind: str) -> None:
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=content,
        model_type=kind,
        vocab_size=380,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    path.write_bytes(content.getvalue())


def problem(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], sizes: Sequence[int]
) -> str | None:
    """Returns what is wrong with a tokenizer, told by one case, or None."""
    if tokenizer.begins_with_space:
        text = text.replace("▁", " ")  # to SentencePiece they are one
    if lost := lost_bytes(tokenizer):
        text = "".join(c for c in text if not lost & set(c.encode()))
    encoded = tokenizer.encode(text)
    if tokenizer.decode(encoded) != text:
        return f"{text!r} came back as {tokenizer.decode(encoded)!r}"
    if {tokenizer.bos_id, *tokenizer.eos_ids} & set(encoded):
        return f"{text!r} became a special token"
    shown = _streamed(tokenizer, encoded, sizes)
    if "".join(shown) != text:
        return f"{text!r} streamed as {shown!r}"
    if "".join(_streamed(tokenizer, ids, sizes)) != tokenizer.decode(ids):
        return f"the ids {list(ids)} stream as they do not decode"
    return None


@functools.cache
def lost_bytes(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the bytes that no token stands for: some models learned none for them."""
    known = {piece[0] for piece in tokenizer.pieces or [] if len(piece) == 1}
    return frozenset(range(256)) - known if tokenizer.pieces else frozenset()


def _streamed(
    tokenizer: Tokenizer, ids: Sequence[int], sizes: Sequence[int]
) -> list[str]:
    stream, shown, at, turn = StreamDecoder(tokenizer), [], 0, 0
    while at < len(ids):
        size = sizes[turn % len(sizes)]
        shown.append(stream.push(ids[at : at + size]))
        at, turn = at + size, turn + 1
    return [*shown, stream.flush()]


def campaign(tokenizers: dict[str, Tokenizer], cases: int) -> tuple[int, dict]:
    """Returns how many cases each tokenizer took, and what failed by its name."""
    taken, failed = 0, {}

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TEXT, IDS, SIZES)
    def one(text: str, ids: list[int], sizes: list[int]) -> None:
        nonlocal taken
        taken += 1
        for name, tokenizer in tokenizers.items():
            wrong = problem(tokenizer, text, ids, sizes)
            if wrong is not None:
                failed.setdefault(name, wrong)

    one()
    return taken, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    tokenizers = exact_tokenizers(options.model)
    started = time.perf_counter()
    taken, failed = campaign(tokenizers, options.cases)
    for name, tokenizer in tokenizers.items():
        lost = lost_bytes(tokenizer) - NEVER
        but = f" but for the bytes {' '.join(f'{b:02x}' for b in lost)}" if lost else ""
        result = failed.get(name, f"exact{but}")
        print(f"{name:34} {tokenizer.vocab_size:7} ids  {result}")
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"cases {taken} failed {len(failed)}")


if __name__ == "__main__":
    main()
