from __future__ import annotations

import math
import os
import struct

import pytest

from lmx.core.errors import DataError, StorageError
from lmx.report.plots import plot_losses, smooth
from lmx.training.metrics import MetricsWriter


def record(folder, rows):
    with MetricsWriter(folder, writers=()) as writer:
        for step, values in rows:
            writer.write(step, values)
    return folder / "metrics.jsonl"


def size_of(png):
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:])


LOSS = {"train/loss": 2.0}
RUNS = {
    "one row": [(1, LOSS)],
    "only a validation loss": [(1, {"eval/validation/loss": 2.0})],
    "two validation sets": [(1, {"eval/a/loss": 2.0, "eval/b/loss": 3.0, **LOSS})],
    "some NaN": [(s, {"train/loss": math.nan if s % 3 else 1.0}) for s in range(9)],
    "a spike": [(s, {"train/loss": 1e9 if s == 40 else 2.0}) for s in range(99)],
    "a constant": [(s, {**LOSS, "train/lr": 0.0}) for s in range(200)],
    "loss zero": [(1, {"train/loss": 0.0})],
    "speed, no rate": [(s, {**LOSS, "perf/tokens_per_sec": 7e3}) for s in (1, 2)],
}


@pytest.mark.parametrize("rows", RUNS.values(), ids=RUNS)
def test_any_record_of_a_loss_becomes_a_readable_picture(tmp_path, rows):
    png = tmp_path / "loss.png"
    plot_losses(record(tmp_path, rows), png, title="a $run_$")
    assert min(size_of(png)) >= 600
    assert [path.name for path in tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize(
    "rows", [[], [(1, {"train/lr": 1.0})], [(1, {"a/loss": None})]]
)
def test_a_record_without_a_loss_is_an_error_with_a_remedy(tmp_path, rows):
    rows = [
        (s, {k: math.nan if v is None else v for k, v in r.items()}) for s, r in rows
    ]
    path = record(tmp_path, rows)
    with pytest.raises(DataError, match="train for a step first"):
        plot_losses(path, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_storage_error_and_leaves_the_old_picture(tmp_path):
    (tmp_path / "loss.png").write_text("old")
    (tmp_path / "loss.png.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        plot_losses(record(tmp_path, [(1, LOSS)]), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_text() == "old"
    assert not (tmp_path / "loss.png.partial").exists()


def test_smoothing_keeps_a_line_and_drops_a_spike():
    line = [10.0 - 0.1 * i for i in range(50)]
    inner = slice(5, -5)
    assert smooth(line, window=5)[inner] == pytest.approx(line[inner])
    spiked = [*line[:20], 1e6, *line[21:]]
    assert max(smooth(spiked, window=5)) <= 10.0
    assert smooth(line, window=0) == line
