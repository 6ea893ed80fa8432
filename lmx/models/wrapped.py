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
