"""The step directories of a run: found, verified, published, pruned, moved aside.

    DIRECTORY/<step>/manifest.json    files, hashes, facts
    DIRECTORY/<step>/...              what the manifest lists
    DIRECTORY/saving/                 being written or deleted; worthless after a kill
    DIRECTORY/quarantine/<step>[.n]   moved aside by a training run, never deleted

A step directory appears whole and with its manifest, by one rename, or not at all; it
goes by one rename, too. What is in it is not known here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lmx.core.errors import CheckpointError, UserError
from lmx.core.workdir import storage_errno, storage_error, sync_directory
from lmx.training.manifest import Manifest, ManifestError, verify

_STAGING, _QUARANTINE = "saving", "quarantine"


class StepFolders:
    """The step directories below `path`, which need not exist.

    `report` gets one line for each step that is passed over. Only `publish`, `prune`
    and `clear` change anything; they are for the one process that owns the workdir.
    """

    def __init__(self, path: Path, *, report: Callable[[str], object]) -> None:
        self.path = path
        self._report = report
        self._reported: set[str] = set()
        self._verified: dict[int, Manifest] = {}

    def __getitem__(self, step: int) -> Path:
        """Returns where a step is, or would be."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Returns the steps that have a directory, in order, verified or not."""
        try:
            names = [path.name for path in self.path.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(
                error, action="read checkpoints in", path=self.path
            ) from error
        return sorted(int(name) for name in names if _is_step(name))

    def latest(self) -> int | None:
        """Returns the newest step that verifies, or None if there is none at all.

        Raises:
          CheckpointError: there are steps, and none verifies; each fault is named.
        """
        return self._scan()[0]

    def clear(self) -> int | None:
        """Returns `latest()`, with newer steps moved aside and leftovers deleted.

        Raises:
          CheckpointError: there are steps, and none verifies; nothing is moved.
        """
        step, faults = self._scan()
        with self.storage_errors("clean up"):
            for bad in faults:
                self._move_aside(bad)
            self.discard()
        return step

    def staged(self, step: int) -> Path:
        """Returns a place, now free, where a step can be written before `publish`."""
        path = self.path / _STAGING / str(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def discard(self) -> None:
        """Deletes what is staged, under whatever name: a full disk needs the space."""
        shutil.rmtree(self.path / _STAGING, ignore_errors=True)

    def publish(self, step: int, manifest: Manifest) -> None:
        """Makes a staged step visible, in one rename; an older one is moved aside."""
        if self[step].exists():
            self._report(f"checkpoint {step}: left by an earlier run; moved aside")
            self._move_aside(step)
        os.rename(self.path / _STAGING / str(step), self[step])
        sync_directory(self.path)
        self._verified[step] = manifest

    def prune(self, newest: int, *, keep_last: int, keep_every: int | None) -> None:
        """Deletes steps before `newest`, a whole one, that are not to be kept."""
        candidates = [step for step in self.steps() if step <= newest][:-keep_last]
        for step in candidates:
            if keep_every is not None and step % keep_every == 0:
                continue
            doomed = self.path / _STAGING / f"pruned-{step}"
            # Renamed first: a kill during the deletion must not leave half a step.
            with contextlib.suppress(OSError):
                os.rename(self[step], doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self._verified.pop(step, None)

    def manifest(self, step: int) -> Manifest:
        """Returns the manifest of a step, which is verified the first time.

        Raises:
          CheckpointError: there is no such step, or it is damaged.
        """
        if step not in self._verified:
            if step not in self.steps():
                raise CheckpointError(
                    f"there is no checkpoint {step} in {self.path}; there are "
                    f"{self.steps() or 'none'}"
                )
            try:
                self._verified[step] = self._verify(step)
            except ManifestError as error:
                raise CheckpointError(
                    f"checkpoint {step} in {self.path} is damaged: {error}; use "
                    "another step"
                ) from error
        return self._verified[step]

    @contextlib.contextmanager
    def storage_errors(self, action: str) -> Iterator[None]:
        """Turns what the disk refuses into a StorageError that names the directory."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if storage_errno(error) is None:
                raise
            raise storage_error(error, action=action, path=self.path) from error

    def _move_aside(self, step: int) -> None:
        """Renames a step directory into quarantine/."""
        quarantine = self.path / _QUARANTINE
        quarantine.mkdir(exist_ok=True)
        target, number = quarantine / str(step), 1
        while target.exists():
            target, number = quarantine / f"{step}.{number}", number + 1
        os.rename(self[step], target)

    def _verify(self, step: int) -> Manifest:
        manifest = verify(self[step])
        if manifest.step != step:
            raise ManifestError(f"its manifest is that of step {manifest.step}")
        return manifest

    def _scan(self) -> tuple[int | None, dict[int, str]]:
        """Returns the newest step that verifies and the faults of those after it."""
        while True:
            steps = self.steps()
            faults: dict[int, str] = {}
            for step in reversed(steps):
                try:
                    self._verified[step] = self._verify(step)
                except ManifestError as error:
                    faults[step] = str(error)
                    continue
                self._report_faults(faults, f"using {step}")
                return step, faults
            if not steps:
                return None, {}
            if steps == self.steps():
                break
            # A run that is training replaced the steps while they were being read.
        each = "\n".join(f"  checkpoint {step}: {why}" for step, why in faults.items())
        raise CheckpointError(
            f"no checkpoint in {self.path} can be used:\n{each}\n"
            "put back a copy of one, or move the directory away to start again"
        )

    def _report_faults(self, faults: Mapping[int, str], outcome: str) -> None:
        for step, why in faults.items():
            line = f"checkpoint {step}: {why}; {outcome}"
            if line not in self._reported and (self[step]).exists():
                self._reported.add(line)
                self._report(line)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name
