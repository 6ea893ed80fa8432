"""One transformer block, and the table of mixers that a layer pattern names."""

from __future__ import annotations

from functools import partial

import flax.linen as nn

from lmx.core.errors import pick
from lmx.core.schema import Architecture
from lmx.models.attention import Attention, Context
from lmx.models.mlp import MLP
from lmx.models.norms import make_norm

MIXERS = {
    "attention": Attention,
    "window": Attention,
    "nope": Attention,
}


class Block(nn.Module):
    """Mixer and MLP, each added to the residual stream.

    Maps [B, L, D] to [B, L, D], and a cache to the cache written to.
    """

    config: Architecture
    mixer: str

    @nn.compact
    def __call__(self, x_BLD, context: Context, cache=None, layer=None):
        make = pick(MIXERS, self.mixer, "mixer in model.pattern")
        mix = make(self.config, mixer=self.mixer, name="attention")
        mlp = MLP(self.config, name="mlp")
        x_BLD, cache = self._sublayer(
            "mixer", x_BLD, lambda y: mix(y, context, cache, layer)
        )
        x_BLD, _ = self._sublayer("mlp", x_BLD, lambda y: (mlp(y), None))
        return x_BLD, cache

    def _sublayer(self, name: str, x_BLD, function):
        """Returns the stream after `function`, normalised as the config says, and what
        `function` returns beside its output.

        x + f(norm(x)) is 'pre' (Radford et al. 2019), norm(x + f(x)) 'post' (Vaswani et
        al. 2017), x + norm(f(x)) 'output' (OLMo 2, arXiv:2501.00656), and
        x + norm(f(norm(x))) 'both' (Gemma 2, arXiv:2408.00118).
        """
        c, position = self.config, self.config.norm_position
        norm = partial(make_norm, c.norm, c)
        # What is added to the stream, or is the stream itself, has its dtype.
        wide = partial(norm, dtype=c.residual_dtype)
        inward = position in ("pre", "both")
        y_BLD, rest = function(norm(name=f"{name}_norm")(x_BLD) if inward else x_BLD)
        if position == "both":
            y_BLD = wide(name=f"{name}_output_norm")(y_BLD)
        elif position == "output":
            y_BLD = wide(name=f"{name}_norm")(y_BLD)
        y_BLD = x_BLD + y_BLD
        if position == "post":
            y_BLD = wide(name=f"{name}_norm")(y_BLD)
        return self._keep(y_BLD, x_BLD), rest

    def _keep(self, value, stream):
        """Returns `value` in the stream's dtype and on its devices."""
        value = value.astype(stream.dtype)
        return nn.with_logical_constraint(value, ("batch", "length", "features"))
