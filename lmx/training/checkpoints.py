"""Checkpoints: saved in the background, verified before use, bit for bit.

Three modules do the parts: `array_store` writes and reads arrays, `manifest` hashes
files, `step_folders` finds, publishes and prunes step directories. This one puts them
in order, off the training thread. When to save, and what a state is, is decided
elsewhere.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from lmx.core.errors import CheckpointError, UserError
from lmx.core.schema import CheckpointConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.training.array_store import ArrayStore, item_of, misfit, state_digest
from lmx.training.manifest import write_manifest
from lmx.training.step_folders import StepFolders

__all__ = ["Checkpoints", "state_digest"]

T = TypeVar("T")


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
        report: Callable[[str], object] = print,
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
        self._folders = StepFolders(Path(directory).absolute(), report=report)
        self._current: set[int] = set()
        self._pending: concurrent.futures.Future[None] | None = None
        self._store: ArrayStore | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._safe_since: float | None = None

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
        return self._folders.steps()

    def latest(self) -> int | None:
        """Returns the newest step that verifies, or None if there is none at all.

        Raises:
          CheckpointError: there are steps, and none verifies; each fault is named.
          StorageError: the directory cannot be read.
        """
        return self._folders.latest()

    def facts(self, step: int) -> Mapping[str, Any]:
        """Returns the facts that were stored with a step that verifies."""
        return self._folders.manifest(step).facts

    def content(self, step: int) -> str:
        """Returns a hash of the files of a step that verifies, which reads no array.

        What a step names as its base (`facts`) is part of what it is.
        """
        manifest = self._folders.manifest(step)
        files = [(name, fact.sha256) for name, fact in manifest.files.items()]
        text = json.dumps([sorted(files), manifest.facts.get("base")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

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

        self._folders.manifest(step)
        store, path = self._opened(), self._folders[step]
        wanted = dict(flatten_with_names(abstract_state))
        fault = misfit(wanted, store.shapes(path))
        if fault is not None:
            raise CheckpointError(
                f"checkpoint {step} in {self._folders.path} is not of this "
                f"configuration: in it {fault}; use the config that it was trained "
                "with (config.json beside it) or choose another --workdir"
            )
        with self._folders.storage_errors(f"restore checkpoint {step} from"):
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
        like: Any = None,
    ) -> dict[str, Any]:
        """Returns the parameters of a step as nested dictionaries.

        Nothing but the checkpoint is needed: no config, no abstract values. With them
        each array goes straight to its devices.

        Args:
          step: a step of `steps()`; it is verified first unless it has been.
          weights: the trained ones, their average, or the average if there is one.
          like: abstract parameters, whose dtypes and shardings they get; None is as
            they were saved, on the first local device.

        Raises:
          CheckpointError: the step is missing or damaged, has no such weights, or
            they have other names or shapes.
        """
        prefix = self._prefix(step, weights)
        shapes = self._opened().shapes(self._folders[step])
        wanted = {f"{prefix}/{name}": x for name, x in flatten_with_names(like or {})}
        saved = {name: shapes[name][0] for name in shapes if item_of(name) == prefix}
        if wanted and saved != {name: tuple(x.shape) for name, x in wanted.items()}:
            raise CheckpointError(
                f"checkpoint {step} in {self._folders.path} is of a model of another "
                "shape; use the config.json beside it"
            )
        found = self._read(step, saved.__contains__, wanted)
        return dict(nest(found)[prefix])

    def param_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each parameter that `restore_params` gives, by name."""
        prefix = self._prefix(step, "auto") + "/"
        shapes = self._opened().shapes(self._folders[step])
        return {
            name.removeprefix(prefix): shape
            for name, (shape, _) in shapes.items()
            if name.startswith(prefix)
        }

    def read_param(self, step: int, name: str) -> Any:
        """Returns one parameter that `restore_params` gives; no other is read."""
        whole = f"{self._prefix(step, 'auto')}/{name}"
        return self._read(step, whole.__eq__)[whole]

    # Writing.

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Stores `facts` with every checkpoint whose `save` is called from now on."""
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
        return self._folders.clear()

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
        with self._folders.storage_errors(f"save checkpoint {step} to"):
            staged = self._folders.staged(step)
            self._opened().start_write(staged, state)
        self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint"
        )
        self._pending = self._pool.submit(
            self._finish, step, staged, taken=taken, facts=self._facts
        )

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

    def age_seconds(self) -> float | None:
        """Returns how long ago the newest state that this object saved was taken.

        That is the work at risk, None before the first save is whole on the disk.
        """
        return None if self._safe_since is None else time.monotonic() - self._safe_since

    # Inside.

    def _prefix(self, step: int, weights: Literal["auto", "params", "ema"]) -> str:
        """Returns which parameters of a step are meant; raises a `CheckpointError`."""
        self._folders.manifest(step)
        shapes = self._opened().shapes(self._folders[step])
        items = {item_of(name) for name in shapes}
        prefix: str = weights
        if weights == "auto":
            prefix = "ema" if "ema" in items else "params"
        if prefix not in items:
            raise CheckpointError(
                f"checkpoint {step} in {self._folders.path} holds no {prefix!r}; it "
                f"holds {sorted(items)}"
            )
        return prefix

    def _opened(self) -> ArrayStore:
        self._store = self._store or ArrayStore()
        return self._store

    def _read(
        self,
        step: int,
        choose: Callable[[str], bool],
        like: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns name -> array of the chosen leaves of a step that verifies."""
        import jax

        self._folders.manifest(step)
        store, path = self._opened(), self._folders[step]
        wanted = {
            name: (like or {}).get(name) or jax.ShapeDtypeStruct(shape, dtype)
            for name, (shape, dtype) in store.shapes(path).items()
            if choose(name)
        }
        with self._folders.storage_errors(f"restore checkpoint {step} from"):
            return store.read(path, wanted)

    def _finish(
        self, step: int, staged: Path, *, taken: float, facts: Mapping[str, Any]
    ) -> None:
        """Runs in the background: waits for Orbax, adds the manifest, publishes."""
        import jax

        first = jax.process_index() == 0
        try:
            with self._folders.storage_errors(f"save checkpoint {step} to"):
                self._opened().wait()
                if first:
                    manifest = write_manifest(staged, step=step, facts=facts)
                    self._folders.publish(step, manifest)
        except BaseException:
            self._folders.discard()
            raise
        self._current.add(step)
        self._safe_since = taken
        if first:
            self._folders.prune(
                step,
                keep_last=self._config.keep_last,
                keep_every=self._config.keep_every_steps,
            )
