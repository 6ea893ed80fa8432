from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.trees import (
    compile_patterns,
    flatten_with_names,
    map_with_names,
    mask_by_path,
    mirror,
)


class Pair(NamedTuple):
    left: object
    right: object


TREE = {
    "blocks": [{"query": {"kernel": 1}}, {"query": {"kernel": 2}}],
    "moments": Pair(left=3, right=(4, None)),
}


def test_names_join_keys_attributes_and_indices_in_leaf_order():
    assert flatten_with_names(TREE) == [
        ("blocks/0/query/kernel", 1),
        ("blocks/1/query/kernel", 2),
        ("moments/left", 3),
        ("moments/right/0", 4),
    ]
    assert [leaf for _, leaf in flatten_with_names(TREE)] == jax.tree.leaves(TREE)


def test_map_keeps_the_structure_and_gives_each_leaf_its_name():
    named = map_with_names(lambda name, x, y: (name, x + y), TREE, TREE)
    assert named["moments"].right == (("moments/right/0", 8), None)
    assert named["blocks"][1]["query"]["kernel"] == ("blocks/1/query/kernel", 4)


def test_a_mask_is_true_where_any_pattern_is_found():
    mask = mask_by_path(TREE, ["^blocks/1", r"left$", "matches nothing"])
    assert [leaf for _, leaf in flatten_with_names(mask)] == [False, True, True, False]
    assert jax.tree.structure(mask) == jax.tree.structure(TREE)
    assert not any(jax.tree.leaves(mask_by_path(TREE, ())))


def test_a_bad_pattern_is_named_with_its_fault():
    with pytest.raises(UserError, match=r"'\(norm' is not a regular expression"):
        mask_by_path(TREE, ["bias", "(norm"])
    with pytest.raises(UserError, match="not the string 'norm'"):
        compile_patterns("norm")


def test_a_moment_mirrors_its_parameter_and_a_count_none():
    params = {"blocks": {"kernel": np.zeros((2, 3))}, "kernel": np.zeros(4)}
    state = {
        "count": np.zeros(()),
        "mu": params,
        "v_row": {"blocks": {"kernel": np.zeros(2)}},
    }
    assert mirror(state, params) == {
        "count": "",
        "mu": {"blocks": {"kernel": "blocks/kernel"}, "kernel": "kernel"},
        "v_row": {"blocks": {"kernel": ""}},
    }
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    assert mirror(shapes, params) == mirror(state, params)


def test_importing_names_does_not_import_jax():
    code = "import lmx.core.trees, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
