"""ArrayRecord files written by the library, and by TFDS; whole and damaged."""

from __future__ import annotations

import json
import random

import fsspec
import numpy as np
import pytest

from lmx.core.errors import DataError
from lmx.data import places, readers

module = pytest.importorskip("array_record.python.array_record_module")
ROWS = [{"text": f"row {n} Größe", "n": n} for n in range(40)]


def write(path, records: list[bytes]):
    writer = module.ArrayRecordWriter(str(path), "group_size:4")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def read(path) -> list[readers.Record]:
    found = places.find(str(path))
    assert found is not None
    return list(readers.read(found.entries, whole_files=True))


def example(fields: dict) -> bytes:
    """Returns a tf.train.Example as TFDS's own message writes it."""
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for key, values in fields.items():
        feature = message.features.feature[key]
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, bytes | str):
                raw = value.encode() if isinstance(value, str) else value
                feature.bytes_list.value.append(raw)
            elif isinstance(value, int):
                feature.int64_list.value.append(value)
            else:
                feature.float_list.value.append(value)
    return message.SerializeToString()


@pytest.mark.parametrize("suffix", [".array_record", ".arrayrecord"])
def test_records_are_what_the_first_of_them_is(tmp_path, suffix):
    for name, records, fields in (
        ("json", [json.dumps(row).encode() for row in ROWS], ROWS),
        ("example", [example(row) for row in ROWS], ROWS),
        (
            "text",
            [row["text"].encode() for row in ROWS],
            [{"text": row["text"]} for row in ROWS],
        ),
        ("lines", [b"\n\nword", b"\n"], [{"text": "\n\nword"}, {"text": "\n"}]),
        ("none", [], []),
    ):
        found = read(write(tmp_path / f"{name}{suffix}", records))
        assert [r.fields for r in found] == fields
        assert [r.name for r in found] == [
            f"{name}{suffix}#{n}" for n in range(len(fields))
        ]


def test_features_are_values_lists_or_nothing(tmp_path):
    fields = {"one": 1.5, "many": ["a", "b"], "none": [], "picture": b"\x89PNG\xff"}
    (found,) = read(write(tmp_path / "a.array_record", [example(fields)]))
    assert found.fields == {**fields, "none": None}


def test_tfds_and_this_reader_agree(tmp_path):
    """tensorflow_datasets writes the file, with its own serialiser."""
    from tensorflow_datasets.core import example_serializer, features

    spec = features.FeaturesDict(
        {"text": features.Text(), "n": features.Scalar(np.int64)}
    )
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    records = [serializer.serialize_example(spec.encode_example(row)) for row in ROWS]
    assert [r.fields for r in read(write(tmp_path / "a.array_record", records))] == ROWS


def test_a_record_that_is_unlike_the_first_is_damaged(tmp_path):
    for first, other in (
        (b'{"text": "a"}', b"text"),
        (example({"text": "a"}), b'{"text": "a"}'),
        (b"text", b"\xff"),
    ):
        found = read(write(tmp_path / "a.array_record", [first, other, first]))
        assert [r.problem is None for r in found] == [True, False, True]


def test_damage_is_named_or_does_no_harm(tmp_path):
    draw = random.Random(0)
    rows = [json.dumps(row).encode() for row in ROWS]
    whole = write(tmp_path / "a.array_record", rows).read_bytes()
    fields, told = read(tmp_path / "a.array_record"), 0
    for _ in range(60):
        at = draw.choice((draw.randrange(len(whole)), draw.randrange(2000)))
        damaged = draw.choice((whole[:at], whole[:at] + b"\x55" * 9 + whole[at + 9 :]))
        (tmp_path / "a.array_record").write_bytes(damaged)
        try:
            assert read(tmp_path / "a.array_record") == fields
        except DataError as error:
            told += "a.array_record is not a whole" in str(error)
    assert told > 20


def test_a_file_behind_a_url_is_copied_first(tmp_path):
    path = write(tmp_path / "a.array_record", [json.dumps(r).encode() for r in ROWS])
    fsspec.filesystem("memory").put(str(path), "/array/a.array_record")
    assert read("memory://array/a.array_record") == read(path)
