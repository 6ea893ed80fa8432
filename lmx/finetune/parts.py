"""How the two parts of a training state, what trains and what does not, are one model.

What does not train is what an adapter changes, and what the objective compares the
model with: the one that training starts from, or a teacher. The first needs no copy
where an adapter leaves its weights as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.trees import flatten_with_names, nest
from lmx.finetune.adapter import Adapter
from lmx.training.objective import Against, Compared


@dataclasses.dataclass(frozen=True)
class Parts:
    """What becomes of the parameters of a model, and of those of a teacher.

    Attributes:
      adapter: what of the model trains; None is all.
      against: whose weights the objective also takes, as it says itself.
    """

    adapter: Adapter | None
    against: Against | None

    @property
    def need_start(self) -> bool:
        """Whether the parameters that training starts from are needed to go on."""
        return self.adapter is not None or self.against == "start"

    def trained(self, key: jax.Array, params: Any) -> Any:
        """Returns what trains, of a model with `params`; `key` draws what they lack."""
        return params if self.adapter is None else self.adapter.params(key, params)

    def frozen(self, params: Any, teacher: Any = None) -> Any:
        """Returns what does not train, None where there is nothing of the kind."""
        base = None if self.adapter is None else self.adapter.frozen(params)
        if self.against is None:
            return base
        return {"base": base, "reference": self._kept(params, teacher)}

    def join(self, trained: Any, frozen: Any) -> Any:
        """Returns what the objective takes; copies nothing."""
        if self.against is None:
            return self._model(trained, frozen)
        base, reference = frozen["base"], frozen["reference"]
        if self.against == "start" and self.adapter is not None:
            reference = self.adapter.join(reference, base)
        return Compared(self._model(trained, base), reference)

    def merge(self, trained: Any, frozen: Any) -> Any:
        """Returns plain parameters of the model that trains."""
        if self.adapter is None:
            return trained
        base = frozen if self.against is None else frozen["base"]
        return self.adapter.merge(trained, base)

    def _model(self, trained: Any, base: Any) -> Any:
        return trained if self.adapter is None else self.adapter.join(trained, base)

    def _kept(self, params: Any, teacher: Any) -> Any:
        """Returns what a reference has that is nowhere else."""
        if self.against == "teacher":
            return teacher
        if self.adapter is not None:
            named = dict(flatten_with_names(params))
            params = nest({name: named[name] for name in sorted(self.adapter.trained)})
        # A step may reuse the memory of either part, so they must not share any.
        return jax.tree.map(jnp.copy, params)
