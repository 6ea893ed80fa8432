"""Records of ArrayRecord files: JSON objects, tf.train.Example messages, or texts.

What the first record of a file is, all of it are. The library checks a hash of every
chunk, so that damage is found; TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

from lmx.core.errors import DataError
from lmx.data import places, streams
from lmx.data.places import FileEntry
from lmx.data.record import Record, json_record, text_record

Decode = Callable[[str, bytes], Record]


def read(entry: FileEntry, fields: Collection[str]) -> Iterator[Record]:
    """Yields the records of a file; a text is the field `text`.

    Raises a `DataError` for a file that is damaged, or made to fill a memory.
    """
    del fields
    decode: Decode | None = None
    for number, content in enumerate(_contents(entry)):
        decode = decode or _decoder(content)
        name = f"{entry.name}#{number}"
        if len(content) > streams.LONGEST_LINE:
            yield Record(name, {}, f"more than {streams.LONGEST_LINE >> 20} MB")
        else:
            yield decode(name, content)


def _contents(entry: FileEntry) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    with _local(entry) as path:
        try:
            file = ArrayRecordReader(path)
            try:
                done = 0
                for _ in range(file.num_records()):
                    content = file.read()
                    done += len(content)
                    streams.check_expansion(entry, done)
                    yield content
            finally:
                file.close()
        except (RuntimeError, IndexError) as error:
            raise DataError(
                f"{entry.path} is not a whole ArrayRecord file ({str(error)[:200]}); "
                "fetch or write it again"
            ) from error


@contextlib.contextmanager
def _local(entry: FileEntry) -> Iterator[str]:
    """Yields a path on this machine: the library reads no other."""
    if not places.is_url(entry.path):
        yield entry.path
        return
    with tempfile.NamedTemporaryFile(suffix=".array_record") as copy:
        with places.open_file(entry) as file:
            shutil.copyfileobj(file, copy, streams.READ_BYTES)
        copy.flush()
        yield copy.name


def _decoder(first: bytes) -> Decode:
    """Returns what reads records like the first of a file."""
    if json_record("", first).problem is None:
        return json_record
    return text_record if example_record("", first).problem else example_record


def example_record(name: str, content: bytes) -> Record:
    """Returns the record that a tf.train.Example is, or what is wrong with it.

    A feature of one value is that value, of none null; bytes are text where they are
    UTF-8.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        return Record(name, {}, f"not a tf.train.Example ({error})")
    features = message.features.feature
    if not features or not any(each.WhichOneof("kind") for each in features.values()):
        return Record(name, {}, "a tf.train.Example without features")
    return Record(name, {key: _value(features[key]) for key in sorted(features)})


def _value(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values: list[Any] = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list":
        values = [_text(value) for value in values]
    return values[0] if len(values) == 1 else values or None


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:  # a picture, say; it is no matter unless it is asked for
        return value
