"""The mesh: which shapes fit how many devices, and what is said of others."""

from __future__ import annotations

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.schema import ParallelConfig
from lmx.parallel.mesh import AXES, make_mesh, mesh_shape

sizes = st.integers(1, 6)


@given(st.tuples(sizes, sizes, sizes, sizes), st.sampled_from(AXES))
def test_a_free_axis_takes_the_devices_that_are_left(numbers, free):
    shape = dict(zip(AXES, numbers, strict=True))
    devices = math.prod(shape.values())
    given_free = ParallelConfig(**{**shape, free: -1})
    assert mesh_shape(given_free, devices) == tuple(shape.values())
    assert mesh_shape(ParallelConfig(**shape), devices) == tuple(shape.values())


@given(st.integers(1, 64), sizes, sizes)
def test_a_mesh_uses_every_device_or_is_refused(devices, fsdp, tensor):
    config = ParallelConfig(fsdp=fsdp, tensor=tensor)
    if devices % (fsdp * tensor):
        with pytest.raises(UserError, match=f"there are {devices};") as error:
            mesh_shape(config, devices)
        assert f"fsdp={fsdp} · expert=1 · tensor={tensor}" in str(error.value)
    else:
        assert math.prod(mesh_shape(config, devices)) == devices


@pytest.mark.parametrize(
    "shape", [(-1, -1, 1), (0, 1, 1), (-2, 1, 1), (1, 1, -3), (-1, 0, 1)]
)
def test_axes_below_one_are_refused(shape):
    with pytest.raises(UserError, match="at least 1, and one of them may be -1"):
        mesh_shape(ParallelConfig(*shape), 8)


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (16, 1, 1), (3, 1, 1)])
def test_axes_that_multiply_to_another_number_name_both_numbers(shape):
    with pytest.raises(UserError, match=r"there are 8; set parallel\.data=-1") as error:
        mesh_shape(ParallelConfig(*shape), 8)
    assert f"needs {math.prod(shape)} devices" in str(error.value)


def test_the_mesh_names_its_axes_and_leaves_shardings_to_the_compiler():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
