"""Logical axis → mesh axes. A layout is a table; models do not change with it."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh, PartitionSpec

from lmx.core.errors import UserError

Rules = Mapping[str, str | tuple[str, ...] | None]

# fsdp splits every parameter along its width (ZeRO-3, Rajbhandari et al. 2019,
# arXiv:1910.02054); tensor splits heads and hidden units (Shoeybi et al. 2019,
# arXiv:1909.08053); expert splits experts (Lepikhin et al. 2020, arXiv:2006.16668).
DEFAULT: Rules = {
    "batch": ("data", "fsdp", "expert"),
    "expert_batch": ("data", "fsdp"),  # rows while "expert" splits their experts
    "length": None,
    "features": None,
    "layers": None,
    "vocab": "tensor",
    "position": None,
    "token_type": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "router": None,
    "latent": None,
}
RULES: dict[str, Rules] = {"default": DEFAULT}


def to_spec(names: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose axes have these logical names."""
    return PartitionSpec(*(None if n is None else rules[n] for n in names))


def check_divisible(shapes, mesh: Mesh, rules: Rules) -> None:
    """Raises a `UserError` listing every dimension that the mesh does not divide.

    `shapes` yields (name, shape, logical names) of each parameter.
    """
    faults: dict[tuple, str] = {}
    for name, shape, axes in shapes:
        for size, axis in zip(shape, axes, strict=True):
            mesh_axis = None if axis is None else rules[axis]
            parts = mesh.shape[mesh_axis] if isinstance(mesh_axis, str) else 1
            if size % parts:
                fits = max(d for d in range(1, parts + 1) if size % d == 0)
                faults.setdefault(
                    (axis, size),
                    f"  {axis}={size} ({name}) over parallel.{mesh_axis}={parts}; "
                    f"nearest that fits: {fits}",
                )
    if faults:
        lines = [*faults.values()]
        shown = (
            [*lines[:3], f"  and {len(lines) - 3} more"] if len(lines) > 4 else lines
        )
        raise UserError("\n".join(["the mesh does not divide the model:", *shown]))
