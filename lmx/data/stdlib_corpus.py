"""The corpus that is always there, `python_stdlib`, as a TFDS builder.

It needs no TensorFlow and no download, writes ArrayRecord, and is split by file, by the
hash of its name. The version is the running Python's, so another Python builds another.
Importing this module imports TFDS; which files it reads is in `stdlib_files`.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx.data import stdlib_files

VALIDATION_SHARE = 0.05


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """Modules of the standard library and topics of the language reference."""

    VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info[:3]))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"id": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="The standard library of a Python and its language reference.",
            license="Python Software Foundation License",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        tally: Counter[str] = Counter()
        documents = list(stdlib_files.read_stdlib(tally))
        self.info.metadata.update(tally)
        split: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
        for name, text in documents:
            split["validation" if _held_out(name) else "train"].append((name, text))
        return {name: self._generate_examples(some) for name, some in split.items()}

    def _generate_examples(
        self, documents: list[tuple[str, str]]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        for name, text in documents:
            yield name, {"id": name, "text": text}


def _held_out(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64
