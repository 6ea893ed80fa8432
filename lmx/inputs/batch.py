"""The one data contract: what a step, an evaluation and a packer agree on.

It is a tuple of arrays and nothing else: NumPy when the pipeline yields it, JAX inside
a step. It knows no mesh, no vocabulary and no file.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows of tokens with what each position predicts; every field is [B, L].

    A position with `segment_ids` 0 is padding: its token is the pad id and its weight
    is 0. Attention stays within equal segment ids.
    """

    tokens: Any
    """int32: what the model reads."""
    targets: Any
    """int32: what it should say at each position: the next token of the stream."""
    loss_weights: Any
    """float32: 0 where the target is padding or belongs to the next document."""
    segment_ids: Any
    """int32: documents of a row are 1, 2, …; padding is 0."""
    positions: Any
    """int32: distance from the first token of the document that this row holds."""
