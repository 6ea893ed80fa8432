"""Documents in TFDS data sets, the built-in `python_stdlib` included.

TensorFlow is never needed for data sets in ArrayRecord; one in TFRecord is refused
with the remedy. Nothing is ever downloaded. Importing this module imports TFDS (0.5 s),
so `sources` does it late.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from lmx.core import errors
from lmx.data import stdlib_corpus

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


class DamagedError(errors.DataError):
    """A data set that was written cannot be read back."""


def open_builder(name: str) -> Any:
    """Returns the builder of `name`, `name/config` or `name:version`.

    Nothing is downloaded: raises a `DataError` with the command that does where the
    data set is not on this machine yet, and where TFDS does not know it.
    """
    base = name.partition("/")[0].partition(":")[0]
    prepared = Path(tfds.core.constants.DATA_DIR, base).is_dir()
    # Asked before TFDS is, which would look for an unknown name on the network.
    known = tfds.list_builders(with_community_datasets=False)
    if not prepared and base not in known:
        near = errors.did_you_mean(base, ["python_stdlib", *known])
        near = near if "did you mean" in near else "; give a path or such a name"
        raise errors.DataError(
            f"{name!r} is neither a file, nor a folder, nor a TFDS data set{near}"
        )
    try:
        with _quiet():
            builder = tfds.builder(name, try_gcs=False, file_format="array_record")
            ready = builder.is_prepared()
    except Exception as error:  # whatever a data set's own code raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise errors.DataError(f"TFDS cannot open {name!r}: {reason[:200]}") from error
    if not ready:
        raise errors.DataError(
            f"{name!r} is not prepared on this machine; run once, with network: "
            'python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    return builder


def open_directory(path: Path) -> Any:
    """Returns the builder of a folder that TFDS wrote, or raises a `DamagedError`."""
    try:
        with _quiet():
            return tfds.builder_from_directory(path)
    except Exception as error:  # TFDS raises many kinds for a damaged folder
        raise DamagedError(
            f"{path} is not a whole TFDS data set ({error}); prepare it again"
        ) from error


def build_stdlib(data_dir: Path) -> None:
    """Writes the built-in corpus below `data_dir`; raises an OSError."""
    try:
        with _quiet():
            builder = stdlib_corpus.PythonStdlib(
                data_dir=data_dir, file_format="array_record"
            )
            builder.download_and_prepare()
    except RuntimeError as error:  # what ArrayRecord makes of a failed write
        full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def open_stdlib(data_dir: Path) -> Any:
    """Returns the builder of the corpus that `build_stdlib` wrote there."""
    version = stdlib_corpus.PythonStdlib.VERSION
    return open_directory(data_dir / "python_stdlib" / str(version))


def splits(builder: Any) -> dict[str, str]:
    """Returns the data set's own name for our 'train' and, if any, 'validation'.

    A split for testing is never used. Raises a `DataError` without a split to train on.
    """
    names = list(builder.info.splits or ())
    held_out = next((name for name in VALIDATION_NAMES if name in names), None)
    if "train" not in names:
        raise errors.DataError(
            f"{builder.info.full_name} has no split 'train' (it has "
            f"{', '.join(names) or 'none'}); set data.path to a data set with one"
        )
    return {"train": "train"} | ({"validation": held_out} if held_out else {})


def read_split(
    builder: Any, split: str, *, text_field: str
) -> Iterator[tuple[str, str]]:
    """Yields the documents of one of the data set's splits."""
    name = builder.info.full_name
    fields = list(builder.info.features or ())
    if text_field not in fields:
        raise errors.DataError(
            f"{name} has no field {text_field!r}"
            f"{errors.did_you_mean(text_field, fields)} Set data.text_field."
        )
    try:
        with _quiet():
            source = builder.as_data_source(split)
    except (ImportError, AttributeError, NotImplementedError) as error:
        raise _needs_tensorflow(name, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(builder, error) from error
    for number in range(len(source)):
        try:
            value = source[number][text_field]
        except (OSError, ValueError, RuntimeError) as error:
            raise _damaged(builder, error) from error
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str):
            raise errors.DataError(
                f"{name}: field {text_field!r} holds {type(value).__name__}, not text; "
                "set data.text_field to a field of text"
            )
        yield f"{split}#{number}", value


def built_in_tally(builder: Any) -> Counter[str]:
    """Returns what was left out when the built-in corpus was written."""
    return Counter({name: int(n) for name, n in dict(builder.info.metadata).items()})


def _damaged(builder: Any, error: Exception) -> DamagedError:
    return DamagedError(
        f"{builder.info.full_name} is damaged ({str(error)[:120]}); delete "
        f"{builder.data_dir} and prepare it again"
    )


def _needs_tensorflow(name: str, error: Exception) -> errors.DataError:
    return errors.DataError(
        f"TFDS needs TensorFlow for {name!r} ({str(error).splitlines()[0][:120]}): "
        "prepare it with file_format='array_record' where TensorFlow is installed, and "
        "set data.path to its folder"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's announcements, warnings and progress bars off the terminal."""
    tfds.disable_progress_bar()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)
