"""One transformer block, and the table of mixers that a layer pattern names."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn

from lmx.core.errors import pick
from lmx.core.model_schema import Architecture
from lmx.models.attention import Attention, Context
from lmx.models.latent import LatentAttention
from lmx.models.mlp import MLP
from lmx.models.moe import MoE
from lmx.models.norms import make_norm

MIXERS: dict[str, type[Attention] | type[LatentAttention]] = {
    "attention": Attention,
    "window": Attention,
    "nope": Attention,
    "latent": LatentAttention,
}
FFNS = ("mlp", "moe")


class Layer(NamedTuple):
    """What a block is made of: names of a mixer and of a feed-forward layer."""

    mixer: str
    ffn: str


class Block(nn.Module):
    """Mixer and feed-forward, each added to the residual stream.

    Maps [B, L, D] to [B, L, D], and a cache to the cache written to; a mixture of
    experts has `RouterLosses` besides, other layers None.
    """

    config: Architecture
    kind: Layer

    @nn.compact
    def __call__(self, x_BLD, context: Context, cache=None, layer=None):
        c = self.config
        make = pick(MIXERS, self.kind.mixer, "mixer in model.pattern")
        mix = make(c, mixer=self.kind.mixer, name="attention")
        feed = self._feed_forward()
        y_BLD, cache = self._branch(
            "mixer", x_BLD, lambda y: mix(y, context, cache, layer)
        )
        parallel = c.sublayers == "parallel"
        before_BLD, x_BLD = x_BLD, self._join("mixer", x_BLD, y_BLD)
        y_BLD, losses = self._branch(
            "mlp", before_BLD if parallel else x_BLD, lambda y: feed(y, context)
        )
        return self._join("mlp", x_BLD, y_BLD), cache, losses

    def _feed_forward(self):
        """Returns the function (x, context) → output and router losses."""
        c = self.config
        if pick(dict.fromkeys(FFNS, self.kind.ffn), self.kind.ffn, "ffn") == "moe":
            return MoE(c, name="moe")
        mlp = MLP(c, hidden_dim=c.mlp_dim, name="mlp")
        return lambda x_BLD, context: (mlp(x_BLD), None)

    def _branch(self, name: str, x_BLD, function):
        """Returns what a sublayer adds to the stream, and what else it returns.

        f(norm(x)) is 'pre' (Radford et al. 2019), norm(f(x)) 'output' (OLMo 2,
        arXiv:2501.00656), norm(f(norm(x))) 'both' (Gemma 2, arXiv:2408.00118).
        """
        c, position = self.config, self.config.norm_position
        if position in ("pre", "both"):
            x_BLD = make_norm(c.norm, c, name=f"{name}_norm")(x_BLD)
        y_BLD, rest = function(x_BLD)
        # What is added to the stream, or is the stream itself, has its dtype.
        wide = partial(make_norm, c.norm, c, dtype=c.residual_dtype)
        if position == "both":
            y_BLD = wide(name=f"{name}_output_norm")(y_BLD)
        elif position == "output":
            y_BLD = wide(name=f"{name}_norm")(y_BLD)
        return y_BLD, rest

    def _join(self, name: str, x_BLD, y_BLD):
        """Returns x + y, normalised where norms are 'post' (Vaswani et al. 2017)."""
        c, dtype = self.config, x_BLD.dtype
        x_BLD = x_BLD + y_BLD
        if c.norm_position == "post":
            norm = make_norm(c.norm, c, name=f"{name}_norm", dtype=c.residual_dtype)
            x_BLD = norm(x_BLD)
        x_BLD = x_BLD.astype(dtype)
        return nn.with_logical_constraint(x_BLD, ("batch", "length", "features"))
