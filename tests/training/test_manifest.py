"""A directory verifies if and only if it holds exactly what was written."""

from __future__ import annotations

import json
import os
import random

import pytest

from lmx.core.errors import CheckpointError
from lmx.training.manifest import MANIFEST, ManifestError, verify, write_manifest

FACTS = {"config": "abc", "list": [1, 2.5, None], "word": "é"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "step" / "sub" / "deep").mkdir(parents=True)
    generator = random.Random(0)
    for name in ("a", "sub/b", "sub/deep/ü"):
        size = generator.randrange(1, 5000)
        (tmp_path / "step" / name).write_bytes(generator.randbytes(size))
    (tmp_path / "step" / "empty").touch()
    write_manifest(tmp_path / "step", step=7, facts=FACTS)
    return tmp_path / "step"


def test_what_was_written_verifies(folder):
    manifest = verify(folder)
    assert manifest.step == 7
    assert manifest.facts == FACTS
    assert list(manifest.files) == ["a", "empty", "sub/b", "sub/deep/ü"]
    assert write_manifest(folder, step=7, facts=FACTS) == manifest


def test_every_bit_of_the_manifest_counts(folder):
    path = folder / MANIFEST
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(ManifestError, match=r"manifest\.json"):
            verify(folder)
    path.write_bytes(good)
    verify(folder)


def test_a_flipped_bit_in_any_file_names_the_file(folder):
    for name in ("a", "sub/b", "sub/deep/ü"):
        path = folder / name
        good = path.read_bytes()
        position = random.Random(name).randrange(len(good) * 8)
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(ManifestError, match=f"^{name}: sha256 differs"):
            verify(folder)
        path.write_bytes(good)


def _truncate(folder):
    path = folder / "a"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda d: (d / MANIFEST).unlink(), r"manifest\.json: missing"),
        (lambda d: (d / MANIFEST).write_bytes(b""), r"manifest\.json: damaged"),
        (lambda d: (d / "sub" / "b").unlink(), "^sub/b: missing"),
        (lambda d: (d / "empty").write_bytes(b"1"), "^empty: 1 bytes instead of 0"),
        (_truncate, r"^a: \d+ bytes instead of"),
        (lambda d: (d / "new").touch(), "^new: not in manifest"),
        (lambda d: (d / "link").symlink_to("/etc/passwd"), "^link: neither a file"),
        (lambda d: os.mkfifo(d / "pipe"), "^pipe: neither a file"),
    ],
)
def test_every_other_harm_is_named(folder, harm, said):
    harm(folder)
    with pytest.raises(ManifestError, match=said):
        verify(folder)


def test_an_empty_or_absent_directory_does_not_verify(tmp_path):
    with pytest.raises(ManifestError, match="the directory is empty"):
        verify(tmp_path)
    with pytest.raises(ManifestError, match="cannot be read"):
        verify(tmp_path / "nothing")


def _forge(folder, **changes):
    """Writes a manifest whose own hash is right."""
    from lmx.training import manifest

    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop("sha256")
    content |= changes
    digest = manifest.hashlib.sha256(manifest._canonical(content)).hexdigest()
    content["sha256"] = digest
    (folder / MANIFEST).write_bytes(manifest._canonical(content))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "sub/../../secret", "a\0b", "", ".", "sub"]
)
def test_a_hostile_path_is_never_opened(folder, name):
    (folder.parent / "secret").write_text("secret")
    _forge(folder, files={name: {"size": 6, "sha256": "0" * 64}})
    with pytest.raises(ManifestError, match=r": missing$"):
        verify(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"a": 3}},
        {"files": {"a": {"size": "x", "sha256": "y"}}},
        {"step": None},
        {"facts": 1},
        {"more": 1},
        {"format": 2},
    ],
)
def test_a_forged_manifest_is_refused_without_a_crash(folder, changes):
    _forge(folder, **changes)
    with pytest.raises(ManifestError, match=r"^manifest\.json: "):
        verify(folder)


@pytest.mark.parametrize(
    "raw",
    [b"[" * 100_000, b"\xff\xfe", b"null", b"3", b'{"format": 1}', b"{" * 9, b"[NaN]"],
)
def test_garbage_is_refused_without_a_crash(folder, raw):
    (folder / MANIFEST).write_bytes(raw)
    with pytest.raises(ManifestError, match=r"manifest\.json: damaged"):
        verify(folder)


def test_an_uncaught_manifest_error_exits_as_no_usable_checkpoint():
    assert issubclass(ManifestError, CheckpointError)
