"""One transformer block, and the table of mixers that a layer pattern names."""

from __future__ import annotations

import flax.linen as nn

from lmx.core.errors import pick
from lmx.core.schema import Architecture
from lmx.models.attention import Attention, Context
from lmx.models.mlp import MLP
from lmx.models.norms import make_norm

MIXERS = {
    "attention": lambda config: Attention(config, name="attention"),
    "window": lambda config: Attention(config, window=config.window, name="attention"),
}


class Block(nn.Module):
    """Mixer and MLP, each added to the residual stream.

    'pre' is x + f(norm(x)) (Radford et al. 2019), 'post' norm(x + f(x)) (Vaswani et
    al. 2017). Maps [B, L, D] to [B, L, D], and a cache to the cache written to.
    """

    config: Architecture
    mixer: str

    @nn.compact
    def __call__(self, x_BLD, context: Context, cache=None, layer=None):
        c = self.config
        # After a sublayer the norm's output is the stream itself.
        dtype = c.residual_dtype if c.norm_position == "post" else None
        norms = [
            make_norm(c.norm, c, name=name, dtype=dtype)
            for name in ("mixer_norm", "mlp_norm")
        ]
        mix = pick(MIXERS, self.mixer, "mixer in model.pattern")(c)
        mlp = MLP(c, name="mlp")
        if c.norm_position == "pre":
            mixed, cache = mix(norms[0](x_BLD), context, cache, layer)
            x_BLD = self._keep(x_BLD + mixed, x_BLD)
            x_BLD = self._keep(x_BLD + mlp(norms[1](x_BLD)), x_BLD)
        else:
            mixed, cache = mix(x_BLD, context, cache, layer)
            x_BLD = self._keep(norms[0](x_BLD + mixed), x_BLD)
            x_BLD = self._keep(norms[1](x_BLD + mlp(x_BLD)), x_BLD)
        return x_BLD, cache

    def _keep(self, value, stream):
        """Returns `value` in the stream's dtype and on its devices."""
        value = value.astype(stream.dtype)
        return nn.with_logical_constraint(value, ("batch", "length", "features"))
