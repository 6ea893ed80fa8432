"""Every table agrees with the option that names its entries."""

import typing

import pytest

from lmx.core.config import fields
from lmx.evaluate.compression import COMPRESSORS
from lmx.finetune.objectives import OBJECTIVES
from lmx.inputs.tokenizers import KINDS
from lmx.models.mlp import MLPS
from lmx.models.norms import NORMS
from lmx.parallel.rules import RULES
from lmx.training.metrics import WRITERS
from lmx.training.optimizers import OPTIMIZERS
from lmx.training.schedules import SCHEDULES

HINTS = {key: (hint, field) for key, hint, field in fields()}


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("model.norm", NORMS),
        ("model.mlp", MLPS),
        ("optim.name", OPTIMIZERS),
        ("optim.schedule", SCHEDULES),
        ("objective.name", OBJECTIVES),
        ("parallel.rules", RULES),
    ],
)
def test_options_are_the_entries_of_their_table(key, table):
    assert set(typing.get_args(HINTS[key][0])) == set(table)


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("data.tokenizer", KINDS),
        ("evals.compressors", COMPRESSORS),
        ("log.writers", WRITERS),
    ],
)
def test_documentation_names_every_entry_of_its_table(key, table):
    field = HINTS[key][1]
    text = f"{field.metadata['doc']} {field.default}"
    assert all(name in text for name in table)
