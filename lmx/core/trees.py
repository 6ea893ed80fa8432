"""Names for the leaves of a tree, and masks that patterns on those names select.

A name is the path to a leaf, dictionary keys, attributes and indices joined by "/",
such as `blocks/0/attention/query/kernel`. It is what configuration patterns, error
messages, checkpoints and sharding rules speak of. Nothing here knows which names a
model has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmx.core.errors import UserError


def _name(path: Any) -> str:
    """Returns the name of one key path."""
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_names(tree: Any) -> list[tuple[str, Any]]:
    """Returns (name, leaf) of every leaf, in the order of `jax.tree.leaves`."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(_name(path), leaf) for path, leaf in leaves]


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries from names joined by "/"."""
    root: dict[str, Any] = {}
    for name, leaf in named.items():
        *folders, last = name.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return root


def map_with_names(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `function(name, leaf, *leaves of rest)`.

    Each tree of `rest` has the structure of `tree`, or has it as a prefix.
    """
    import jax

    def call(path: Any, *leaves: Any) -> Any:
        return function(_name(path), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest)


def compile_patterns(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """Returns the compiled regular expressions.

    Raises:
        UserError: one of them is not a regular expression, or they are one string,
            which would otherwise be read as a pattern for each of its letters.
    """
    if isinstance(patterns, str):
        raise UserError(
            f"patterns must be a list of regular expressions, not the string "
            f"{patterns!r}; write [{patterns!r}]"
        )
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise UserError(
                f"{pattern!r} is not a regular expression ({error}); patterns are "
                "searched in parameter names such as blocks/0/mlp/up/kernel"
            ) from error
    return tuple(compiled)


def mask_by_path(tree: Any, patterns: Sequence[str]) -> Any:
    """Returns a tree of bools: whether a pattern is found in the leaf's name.

    A pattern that finds nothing is no error: one list of defaults serves models with
    and without biases.

    Raises:
        UserError: a pattern is not a regular expression.
    """
    compiled = compile_patterns(patterns)
    return map_with_names(
        lambda name, _: any(pattern.search(name) for pattern in compiled), tree
    )


def mirror(tree: Any, reference: Any) -> Any:
    """Returns, for each leaf of `tree`, the name of the reference leaf it mirrors.

    A leaf mirrors a reference leaf (of the longest such name) that has its shape and
    whose name ends its own: the moment `0/mu/embed/embedding` mirrors the parameter
    `embed/embedding`, so that it can be sharded like it. Leaves that mirror none
    (counts, keys, factored statistics) give "". Leaves of both need `.shape` only.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_with_names(reference)}

    def match(name: str, leaf: Any) -> str:
        parts = name.split("/")
        for start in range(len(parts)):
            suffix = "/".join(parts[start:])
            if shapes.get(suffix) == tuple(leaf.shape):
                return suffix
        return ""

    return map_with_names(match, tree)
