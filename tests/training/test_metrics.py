from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import StorageError, UserError
from lmx.training.metrics import WRITERS, MetricsWriter, read_metrics


def fill(workdir, steps, **options):
    with MetricsWriter(workdir, writers=(), **options) as writer:
        for step in steps:
            writer.write(step, {"train/loss": step / 2})


def steps_of(workdir):
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl")]


def test_a_row_comes_back_as_it_was_written(tmp_path):
    values = {"train/loss": np.float32(2.5), "train/tokens": 2**60 + 1}
    with MetricsWriter(tmp_path, writers=()) as writer:
        writer.write(np.int64(3), values)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row.pop("time") > 1.6e9
    assert row == {"step": 3, "train/loss": 2.5, "train/tokens": 2**60 + 1}


@given(value=st.floats() | st.integers(-(2**62), 2**62))
def test_any_number_survives_and_every_line_is_strict_json(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("m")
    with MetricsWriter(folder, writers=()) as writer:
        writer.write(1, {"x": value})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    path = folder / "metrics.jsonl"
    json.loads(path.read_text(), parse_constant=refuse)
    (row,) = read_metrics(path)
    assert row["x"] == value or (math.isnan(row["x"]) and math.isnan(value))


def test_nan_is_null_and_named_never_zero(tmp_path):
    with MetricsWriter(tmp_path, writers=()) as writer:
        writer.write(1, {"train/loss": math.nan, "train/grad_norm": -math.inf})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["train/loss"] is None
    assert row["nonfinite"] == {"train/loss": "nan", "train/grad_norm": "-inf"}


def test_a_row_is_on_disk_before_the_writer_closes(tmp_path):
    with MetricsWriter(tmp_path, writers=()) as writer:
        writer.write(1, {"train/loss": 1.0})
        assert steps_of(tmp_path) == [1]


def test_a_resumed_run_has_each_step_once(tmp_path):
    fill(tmp_path, [10, 20, 30, 40])
    fill(tmp_path, [30, 40, 50], start_step=20)
    assert steps_of(tmp_path) == [10, 20, 30, 40, 50]


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
    fill(tmp_path, [10, 20])
    fill(tmp_path, [], start_step=0)
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 3}', b"\x00\xff\n", b"7\n"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    fill(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    fill(tmp_path, [3], start_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_kill_while_the_record_is_repaired_loses_nothing(tmp_path, monkeypatch):
    fill(tmp_path, [1, 2, 3])

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, [], start_step=1)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_an_unknown_writer_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        MetricsWriter(tmp_path / "new", writers=("tensorbord",))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_storage_error(tmp_path):
    writer = MetricsWriter(tmp_path, writers=())
    writer._file.close()
    writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(StorageError, match="No space left"):
        writer.write(1, {"train/loss": 1.0})
    writer.close()


def test_a_workdir_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--workdir"):
        MetricsWriter(tmp_path / "file")


def read_events(folder):
    """Reads scalars with the record format of TFRecord, checksums ignored."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_takes_rows_and_nan(tmp_path, name):
    with MetricsWriter(tmp_path, writers=(name,), start_step=4) as writer:
        writer.write(5, {"train/loss": 2.0, "train/lr": math.nan})
        writer.write(6, {"train/loss": math.nan})
    writer.close()
    assert steps_of(tmp_path) == [5, 6]


def test_tensorboard_gets_the_scalars_and_hides_what_a_killed_run_wrote(tmp_path):
    with MetricsWriter(tmp_path, start_step=4) as writer:
        writer.write(5, {"train/loss": 2.0, "perf/mfu": 0.5, "bad": math.nan})
    events = list(read_events(tmp_path / "tensorboard"))
    assert [e.step for e in events if e.HasField("session_log")] == [5]
    scalars = {v.tag: v.simple_value for e in events for v in e.summary.value}
    assert scalars == {"train/loss": 2.0, "perf/mfu": 0.5}
