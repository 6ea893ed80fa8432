"""Text ↔ token ids: five kinds of tokenizer, trained and stored.

    kind      pieces                                     round trip
    byte      the 256 bytes                              exact
    bpe       byte-level byte-pair merges                exact
    unigram   byte-level unigram pieces                  exact
    word      whole words with their leading space       but for rare words (<|unk|>)
    char      Unicode characters                         but for rare ones (<|unk|>)

Ids 0, 1, 2 are <|pad|>, <|bos|>, <|eos|> (and 3 is <|unk|> for 'word' and 'char').
Plain text never encodes to them, whatever it spells. A `tokenizer.json` made elsewhere
loads too. This module reads no corpus and knows nothing of rows or models.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmx.core import errors
from lmx.inputs.special_tokens import SPECIALS, UNK, foreign_meta, keep_apart
from lmx.inputs.token_bytes import byte_alphabet, byte_table

if TYPE_CHECKING:
    import tokenizers

KINDS = ("byte", "char", "word", "bpe", "unigram")
BYTE_LEVEL = ("byte", "bpe", "unigram")

# One token never spans two of these pieces. In order: an English contraction; a word
# with the one character before it (a space, "_", ".", "("); up to three digits;
# punctuation with the line ends after it; line ends; a run of spaces but the last,
# so that an indentation is one token and the next word keeps its own space. Letters
# and punctuation never mix beyond one character, so no piece can spell a special.
PIECES = (
    r"(?<=\p{L})'(?:[sdmt]|ll|ve|re)(?![\p{L}\p{N}])"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


class Tokenizer:
    """Encodes text to ids and back; immutable, safe to share between threads."""

    def __init__(self, content: str, meta: dict[str, Any]):
        """Makes one from the text of a tokenizer.json and what meta.json holds."""
        import tokenizers

        # The text is the truth: written out again, the library's floats may drift.
        self._content = content
        self._backend = backend = tokenizers.Tokenizer.from_str(content)
        # Not stored in the file: text that spells a special token is text.
        backend.encode_special_tokens = True
        # Some files are stored with the settings of their last batch.
        backend.no_truncation()
        backend.no_padding()
        keep_apart(backend)
        self.kind: str = meta["kind"]
        self.bos_id: int = meta["bos_id"]
        self.eos_id: int = meta["eos_id"]
        # What ends a text, the token of training first; a chat often has another.
        self.eos_ids: tuple[int, ...] = tuple(meta.get("eos_ids", [self.eos_id]))
        self.pad_id: int = meta["pad_id"]
        self.unk_id: int | None = meta["unk_id"]
        # What a text begins with: BOS, but for some tokenizers made elsewhere.
        self.prefix_ids: tuple[int, ...] = tuple(meta.get("prefix_ids", [self.bos_id]))
        # What a whole text ends with for those encoders that were trained so.
        self.suffix_ids: tuple[int, ...] = tuple(meta.get("suffix_ids", []))
        # Ids may have gaps in tokenizers made elsewhere.
        ids = backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size: int = 1 + max(ids, default=-1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the sha256 (hex) of all that decides how text becomes ids."""
        special: list[Any] = [self.kind, self.bos_id, self.eos_id, self.pad_id]
        special.append(self.unk_id)
        if self.prefix_ids != (self.bos_id,):
            special.append(self.prefix_ids)
        if self.suffix_ids:
            special.append(["suffix", *self.suffix_ids])
        text = json.dumps([json.loads(self._content), special], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def pieces(self) -> list[bytes] | None:
        """Returns the UTF-8 bytes of each id, or None where ids depend on context.

        Special tokens have no bytes; an unknown one has those of U+FFFD.
        """
        table, _ = self._bytes
        return table

    @property
    def begins_with_space(self) -> bool:
        """Whether texts are encoded with a space before them, which decoding drops."""
        _, begins = self._bytes
        return begins

    @functools.cached_property
    def _bytes(self) -> tuple[list[bytes] | None, bool]:
        decoder = json.loads(self._content).get("decoder")
        found = byte_table(self._backend, decoder, self.vocab_size)
        if found is None:
            return None, False
        if self.unk_id is not None:
            found[0][self.unk_id] = "\ufffd".encode()
        return found

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without BOS or EOS.

        Raises a `DataError` for a lone surrogate, which UTF-8 cannot hold.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, using all cores."""
        for text in texts:
            _refuse_surrogates(text)
        if self.kind == "byte":  # 20 times faster than a model without merges
            return [_byte_ids(text) for text in texts]
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def encode_markup(self, text: str) -> list[int]:
        """Returns the ids of text in which special tokens are spelled out.

        For prompts that a chat template made; what a user typed is for `encode`, and
        `chat_tokens.py` keeps the two apart.
        """
        _refuse_surrogates(text)
        backend = self._markup_backend  # of one text, the fast way is the batch's
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    @functools.cached_property
    def _markup_backend(self) -> tokenizers.Tokenizer:
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self._content)
        backend.no_truncation()
        backend.no_padding()
        return backend

    @functools.cached_property
    def special_tokens(self) -> dict[int, tokenizers.AddedToken]:
        """Returns the special tokens by id, as the library has them."""
        added = self._backend.get_added_tokens_decoder()
        return {index: token for index, token in added.items() if token.special}

    @functools.cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Returns what matches the name of a special token in markup."""
        names = [token.content for token in self.special_tokens.values()]
        names.sort(key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def token(self, index: int) -> str | None:
        """Returns the name of an id in the vocabulary, None if it has none."""
        return self._backend.id_to_token(index)

    @property
    def content(self) -> str:
        """Returns the text of its tokenizer.json."""
        return self._content

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens vanish, broken UTF-8 is U+FFFD."""
        ids = [int(index) for index in ids]
        if self.pieces is None:
            known = [index for index in ids if 0 <= index < self.vocab_size]
            return self._backend.decode(known, skip_special_tokens=True)
        text = b"".join(map(self.piece, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.begins_with_space else text

    def piece(self, index: int) -> bytes:
        """Returns the bytes of one id of a tokenizer that has `pieces`.

        An id beyond the vocabulary (a model's padded rows can sample one) is U+FFFD.
        """
        assert self.pieces is not None
        if 0 <= index < self.vocab_size:
            return self.pieces[index]
        return "\ufffd".encode()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json and meta.json into `directory`, replacing them."""
        directory = Path(directory)
        meta = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "eos_ids": list(self.eos_ids),
            "pad_id": self.pad_id,
            "unk_id": self.unk_id,
            "prefix_ids": list(self.prefix_ids),
            "suffix_ids": list(self.suffix_ids),
            "fingerprint": self.fingerprint,
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _replace(directory / "tokenizer.json", self._content)
            _replace(directory / "meta.json", json.dumps(meta, indent=2) + "\n")
        except OSError as error:
            raise errors.StorageError(
                f"cannot write the tokenizer to {directory} ({error.strerror}); "
                "free some space or choose a folder you can write"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer from a directory or a tokenizer.json, ours or another's.

        Raises a `DataError` for a missing, damaged or changed file.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        meta_file = file.with_name("meta.json")
        try:
            text = file.read_text(encoding="utf-8")
            meta_text = meta_file.read_text("utf-8") if meta_file.exists() else None
        except FileNotFoundError as error:
            raise errors.DataError(
                f"no tokenizer at {file}; give one of {', '.join(KINDS)}, "
                "or the path of a tokenizer.json"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise errors.DataError(
                f"cannot read the tokenizer {file}: {error}"
            ) from error
        try:
            if meta_text is None:
                return cls(text, foreign_meta(text, file))
            meta = json.loads(meta_text)
            tokenizer = cls(text, meta)
            fingerprint = meta["fingerprint"]
        except errors.DataError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise errors.DataError(
                f"{file} is not a tokenizer of the `tokenizers` library: {error}"
            ) from error
        if tokenizer.fingerprint != fingerprint:
            raise errors.DataError(
                f"{file} is not the tokenizer that meta.json beside it describes "
                "(damaged or edited); restore it, or delete meta.json to use it as it "
                "is"
            )
        return tokenizer


def train_tokenizer(
    kind: str,
    documents: Iterable[str],
    vocab_size: int,
    *,
    extra: Sequence[str] = (),
) -> Tokenizer:
    """Returns a tokenizer of `kind` trained on `documents`.

    `vocab_size` counts the specials, of which `extra` are some more; less comes back
    where the text has less to learn, and 'byte' always has 259 and these. Raises a
    `UserError` for an unknown kind or a vocabulary too small for it, a `DataError`
    where there is no text.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    word_level = (lambda: models.WordLevel(unk_token=UNK), trainers.WordLevelTrainer)
    table: dict[str, tuple[Any, Any]] = {
        "byte": (_byte_model, None),
        "bpe": (models.BPE, trainers.BpeTrainer),
        "unigram": (models.Unigram, trainers.UnigramTrainer),
        "char": word_level,
        "word": word_level,
    }
    make_model, make_trainer = errors.pick(table, kind, "tokenizer")
    byte_level = kind in BYTE_LEVEL
    specials = [*(SPECIALS if byte_level else (*SPECIALS, UNK)), *extra]
    smallest = len(specials) + (256 if byte_level else 1)
    if vocab_size < smallest and kind != "byte":
        raise errors.UserError(
            f"vocab_size {vocab_size} is too small for a {kind!r} tokenizer, which "
            f"needs {smallest}; set vocab_size={smallest} or more"
        )
    backend = tokenizers.Tokenizer(make_model())
    pattern = r"[\s\S]" if kind == "char" else PIECES
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    options: dict[str, Any] = {}
    if byte_level:
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
        backend.decoder = decoders.ByteLevel()
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    else:
        backend.pre_tokenizer = split
        backend.decoder = decoders.Fuse()
    if make_trainer is None:
        backend.add_special_tokens(specials)
    else:
        trainer = make_trainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            show_progress=False,
            **options,
        )
        seen = _Counted(documents)
        backend.train_from_iterator(seen, trainer=trainer)
        if not seen.characters:
            raise errors.DataError(
                "there is no text to train a tokenizer on; give more documents, or "
                "hold out fewer"
            )
    unk_id = None if byte_level else specials.index(UNK)
    meta = {"kind": kind, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": unk_id}
    return Tokenizer(backend.to_str(pretty=True), meta)


class _Counted:
    """Iterates over clean texts and counts their characters."""

    def __init__(self, documents: Iterable[str]):
        self._documents = documents
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._documents:
            _refuse_surrogates(text)
            self.characters += len(text)
            yield text


def _byte_ids(text: str) -> list[int]:
    content = np.frombuffer(text.encode(), np.uint8)
    return (content.astype(np.int32) + len(SPECIALS)).tolist()


def _byte_model() -> tokenizers.models.BPE:
    from tokenizers import models

    vocab = {name: index for index, name in enumerate(SPECIALS)}
    for character, byte in byte_alphabet().items():
        vocab[character] = len(SPECIALS) + byte
    return models.BPE(vocab=vocab, merges=[])


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.DataError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at "
            f"character {error.start}; no UTF-8 text can hold one: replace or drop it"
        ) from None


def _replace(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
