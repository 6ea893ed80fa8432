"""Checkpoints: saved in the background, verified before use, bit for bit.

`lmx.train.array_store` writes and reads the arrays. Beside it stand a manifest
of every file (`lmx.train.manifest`), a staging directory, so that a step directory
appears whole and with its manifest or not at all, and the fallback to the newest step
that verifies. When to save, and what a state is, is decided elsewhere.

    DIRECTORY/<step>/manifest.json            files, hashes, facts
    DIRECTORY/<step>/{params,ema,train}/      Orbax items, flat: name -> array
    DIRECTORY/saving/                         being written or deleted; worthless later
    DIRECTORY/quarantine/<step>[.n]           moved aside by a training run, kept
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from lmx.core.errors import CheckpointError, UserError
from lmx.core.schema import CheckpointConfig
from lmx.core.trees import flatten_with_names
from lmx.core.workdir import storage_errno, storage_error, sync_directory
from lmx.train.array_store import ArrayStore, item_of, misfit, nest, state_digest
from lmx.train.manifest import Manifest, ManifestError, verify, write_manifest

__all__ = ["Checkpoints", "state_digest"]

T = TypeVar("T")

_STAGING, _QUARANTINE = "saving", "quarantine"


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Reading makes no file and moves none, so any number of readers may watch a run that
    trains. `save`, `recover` and pruning are for the one process that owns the workdir.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        config: CheckpointConfig | None = None,
        facts: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        """Opens a directory, which need not exist.

        Args:
          directory: WORKDIR/checkpoints.
          config: what to keep; readers need none.
          facts: JSON values stored in each manifest (config hash, tokenizer
            fingerprint, version), read back by `facts`.
          report: gets one line for each step that is passed over.

        Raises:
          UserError: the config keeps nothing.
        """
        self._directory = Path(directory).absolute()
        self._config = config or CheckpointConfig()
        if self._config.keep_last < 1:
            raise UserError(
                f"checkpoint.keep_last={self._config.keep_last} keeps nothing to "
                "resume from; it must be at least 1"
            )
        every = self._config.keep_every_steps
        if every is not None and every < 1:
            raise UserError(
                f"checkpoint.keep_every_steps={every} must be at least 1, or None"
            )
        self._facts = dict(facts or {})
        self._report = report
        self._reported: set[str] = set()
        self._verified: dict[int, Manifest] = {}
        self._current: set[int] = set()
        self._pending: concurrent.futures.Future[None] | None = None
        self._store: ArrayStore | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._safe_since = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failed:  # The first error is the one to raise.
            self._report(f"the last checkpoint was not saved: {failed}")

    # Reading.

    def steps(self) -> list[int]:
        """Returns the steps that have a directory, in order, verified or not."""
        try:
            names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(
                error, action="read checkpoints in", path=self._directory
            ) from error
        return sorted(int(name) for name in names if _is_step(name))

    def latest(self) -> int | None:
        """Returns the newest step that verifies, or None if there is none at all.

        Raises:
          CheckpointError: there are steps, and none verifies.
          StorageError: the directory cannot be read.
        """
        return self._scan()[0]

    def facts(self, step: int) -> Mapping[str, Any]:
        """Returns the facts that were stored with a step that verifies."""
        return self._manifest(step).facts

    def digest(self, step: int) -> str:
        """Returns the `state_digest` of a step, without a config or a state.

        Raises:
          CheckpointError: the step is missing or damaged.
        """
        return state_digest(self._read(step, lambda name: True))

    def restore(self, step: int, abstract_state: T) -> T:
        """Returns the state of a step, bit for bit, on the given shardings.

        Args:
          step: a step of `steps()`; it is verified first unless it has been.
          abstract_state: jax.ShapeDtypeStruct leaves (or arrays). A leaf without a
            sharding is put on the first local device; the shardings may differ from
            those that it was saved with.

        Raises:
          CheckpointError: the step is missing or damaged, or a leaf is missing, left
            over or of another shape or dtype; the first one is named.
        """
        import jax

        self._manifest(step)
        store, path = self._opened(), self._directory / str(step)
        wanted = dict(flatten_with_names(abstract_state))
        fault = misfit(wanted, store.shapes(path))
        if fault is not None:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is not of this configuration: "
                f"in it {fault}; use the config that it was trained with (config.json "
                "beside it) or choose another --workdir"
            )
        with self._storage_errors(f"restore checkpoint {step} from"):
            found = store.read(path, wanted)
        # A run that went back will save the later steps anew.
        self._current = {saved for saved in self._current if saved < step} | {step}
        leaves = [found[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def restore_params(
        self,
        step: int,
        *,
        weights: Literal["auto", "params", "ema"] = "auto",
        sharding: Any = None,
    ) -> dict[str, Any]:
        """Returns the parameters of a step as nested dictionaries.

        Nothing but the checkpoint is needed: no config, no abstract state.

        Args:
          step: a step of `steps()`; it is verified first unless it has been.
          weights: the trained ones, their average, or the average if there is one.
          sharding: of every leaf; None is the first local device.

        Raises:
          CheckpointError: the step is missing or damaged, or has no such weights.
        """
        self._manifest(step)
        shapes = self._opened().shapes(self._directory / str(step))
        items = {item_of(name) for name in shapes}
        prefix = weights
        if weights == "auto":
            prefix = "ema" if "ema" in items else "params"
        if prefix not in items:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} holds no {prefix!r}; it holds "
                f"{sorted(items)}"
            )
        found = self._read(step, lambda name: item_of(name) == prefix, sharding)
        return dict(nest(found)[prefix])

    # Writing.

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Stores `facts` with every checkpoint that is saved from now on."""
        self._facts = dict(facts)

    def recover(self) -> int | None:
        """Clears the way for training: returns `latest()`, moves damaged steps aside.

        Steps that were passed over go to quarantine/, so that they cannot come in the
        way of the steps that will be saved again. What a killed run was still writing
        is deleted: it never was a checkpoint.

        Raises:
          CheckpointError: there are steps, and none verifies; nothing is moved.
          StorageError: the directory cannot be read or written.
        """
        step, faults = self._scan()
        with self._storage_errors("clean up"):
            for bad in faults:
                self._move_aside(bad)
            shutil.rmtree(self._directory / _STAGING, ignore_errors=True)
        return step

    def save(self, step: int, state: Any) -> None:
        """Takes a copy of a state and writes it in the background.

        Waits for the save before it, if that is still running. The state may be donated
        to the next step as soon as this returns. A step that was just restored or saved
        is not saved again; one that an earlier run left is moved aside.

        Raises:
          StorageError: this save cannot begin, or the one before it failed.
        """
        self.wait()
        if step in self._current:
            return
        taken = time.monotonic()
        staged = self._directory / _STAGING / str(step)
        with self._storage_errors(f"save checkpoint {step} to"):
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staged, ignore_errors=True)
            self._opened().start_write(staged, state)
        self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint"
        )
        self._pending = self._pool.submit(self._finish, step, staged, taken)

    def check(self) -> None:
        """Raises what went wrong in the background, once; cheap enough for every step.

        Raises:
          StorageError: the last save failed; earlier checkpoints are untouched.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is whole on the disk; raises like `check`."""
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():
                self._pending = None

    def close(self) -> None:
        """Waits, releases the threads, and raises like `check`."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            if self._store is not None:
                self._store.close()
                self._store = None

    def age_seconds(self) -> float:
        """Returns how long ago the newest saved state was taken: work at risk.

        Before the first save it counts from when this object was made.
        """
        return time.monotonic() - self._safe_since

    # Inside.

    def _opened(self) -> ArrayStore:
        self._store = self._store or ArrayStore()
        return self._store

    def _read(
        self, step: int, choose: Callable[[str], bool], sharding: Any = None
    ) -> dict[str, Any]:
        """Returns name -> array of the chosen leaves of a step that verifies."""
        import jax

        self._manifest(step)
        store, path = self._opened(), self._directory / str(step)
        wanted = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in store.shapes(path).items()
            if choose(name)
        }
        with self._storage_errors(f"restore checkpoint {step} from"):
            return store.read(path, wanted)

    @contextlib.contextmanager
    def _storage_errors(self, action: str) -> Any:
        """Turns what the disk refuses into a StorageError that names the directory."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if storage_errno(error) is None:
                raise
            raise storage_error(error, action=action, path=self._directory) from error

    def _finish(self, step: int, staged: Path, taken: float) -> None:
        """Runs in the background: waits for Orbax, adds the manifest, publishes."""
        import jax

        try:
            with self._storage_errors(f"save checkpoint {step} to"):
                self._opened().wait()
                if jax.process_index() == 0:
                    manifest = write_manifest(staged, step=step, facts=self._facts)
                    self._publish(step, staged)
                    self._verified[step] = manifest
        except BaseException:
            # A full disk needs the space, and half a checkpoint is worth nothing.
            shutil.rmtree(staged.parent, ignore_errors=True)
            raise
        self._current.add(step)
        self._safe_since = taken
        if jax.process_index() == 0:
            self._prune()

    def _publish(self, step: int, staged: Path) -> None:
        """Makes a whole checkpoint visible under its step, in one rename."""
        target = self._directory / str(step)
        if target.exists():
            self._report(f"checkpoint {step}: left by an earlier run; moved aside")
            self._move_aside(step)
        os.rename(staged, target)
        sync_directory(self._directory)

    def _prune(self) -> None:
        """Deletes what is not to be kept, after a newer step is whole on the disk."""
        every = self._config.keep_every_steps
        for step in self.steps()[: -self._config.keep_last]:
            if every is not None and step % every == 0:
                continue
            doomed = self._directory / _STAGING / f"pruned-{step}"
            # Renamed first: a kill during the deletion must not leave half a step.
            with contextlib.suppress(OSError):
                os.rename(self._directory / str(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self._verified.pop(step, None)

    def _move_aside(self, step: int) -> None:
        """Renames a step directory into quarantine/."""
        quarantine = self._directory / _QUARANTINE
        quarantine.mkdir(exist_ok=True)
        target, number = quarantine / str(step), 1
        while target.exists():
            target, number = quarantine / f"{step}.{number}", number + 1
        os.rename(self._directory / str(step), target)

    def _manifest(self, step: int) -> Manifest:
        """Returns the manifest of a step, verified at most once."""
        if step not in self._verified:
            if step not in self.steps():
                raise CheckpointError(
                    f"there is no checkpoint {step} in {self._directory}; there are "
                    f"{self.steps() or 'none'}"
                )
            try:
                self._verified[step] = self._verify(step)
            except ManifestError as error:
                raise CheckpointError(
                    f"checkpoint {step} in {self._directory} is damaged: {error}; use "
                    "another step"
                ) from error
        return self._verified[step]

    def _verify(self, step: int) -> Manifest:
        manifest = verify(self._directory / str(step))
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
            f"no checkpoint in {self._directory} can be used:\n{each}\n"
            "put back a copy of one, or move the directory away to start again"
        )

    def _report_faults(self, faults: Mapping[int, str], outcome: str) -> None:
        for step, why in faults.items():
            line = f"checkpoint {step}: {why}; {outcome}"
            if line not in self._reported and (self._directory / str(step)).exists():
                self._reported.add(line)
                self._report(line)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name
