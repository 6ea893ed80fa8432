"""The mesh: all devices as a grid of (data, fsdp, expert, tensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from lmx.core.errors import UserError
from lmx.core.schema import ParallelConfig

AXES = ("data", "fsdp", "expert", "tensor")


def make_mesh(config: ParallelConfig, devices: Sequence | None = None) -> Mesh:
    """Returns a mesh over `devices` (all by default) of the configured shape.

    An axis of −1 takes the devices that the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(config: ParallelConfig, num_devices: int) -> tuple[int, ...]:
    """Returns the size of each axis for `num_devices`."""
    sizes = [getattr(config, axis) for axis in AXES]
    wanted = " · ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(
            f"parallel: {wanted}: axes are at least 1, and one of them may be -1"
        )
    fixed = math.prod(s for s in sizes if s != -1)
    if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
        raise UserError(
            f"parallel: {wanted} needs {'a multiple of ' * (-1 in sizes)}{fixed} "
            f"devices and there are {num_devices}; set parallel.data=-1 and let fsdp · "
            f"tensor divide {num_devices}"
        )
    return tuple(num_devices // fixed if s == -1 else s for s in sizes)
