"""What may stand in the place of a linear layer's kernel: it knows its own product.

Kernels that were prepared for decoding do (`prepared.py`), and so do those that
adapters wrap (`lmx.finetune`). Layers ask only for the product, so a new kind of kernel
changes none of them.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class Wrapped(Protocol):
    """A pytree that acts as a kernel of I inputs and O outputs.

    Of a stack of layers each of its arrays has the axis of layers first.
    """

    def product(self, x: jax.Array, *, form: str, dtype: Any) -> jax.Array:
        """Returns x [..., I] times the kernel, [..., O] in `dtype`."""
        ...


@runtime_checkable
class Layered(Wrapped, Protocol):
    """A stack of kernels of which only some arrays have a gradient.

    Its layers are taken one by one where the loop over layers is unrolled, without a
    slice of what does not change: that would be a copy, kept for the backward pass.
    """

    def changing(self) -> Any:
        """Returns what has a gradient, stacked on axis 0."""
        ...

    def layer(self, index: int, changing: Any) -> Wrapped:
        """Returns the kernel of a layer, with its slice of what has a gradient."""
        ...
