"""From the texts of a config to a `Mixture`: weights, stages, temperature and caps.

    data.mixture     ("wiki=3 code=1", "80%: code=1")   weights from the start, and
                     after 80 % of the steps ("640:" is after 640 steps); before the
                     first entry, and with (), weights are the rows of a source
    data.temperature every weight w becomes w^(1/T) (Devlin et al. 2019, multilingual
                     BERT; Conneau & Lample 2019)
    data.max_epochs  ("wiki=4", "2")   how often one may come; a bare number is for all
                     that are not named

Which row comes when is in `mixture`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lmx.core import errors
from lmx.core.schema import DataConfig
from lmx.data.mixture import Mixture, Stage, whole_numbers
from lmx.data.stages import Entry, entries, number

_EXAMPLE = "write it as in data.mixture=('wiki=3 code=1', '80%: code=1')"


def plan(
    config: DataConfig, rows: Mapping[str, int], *, seed: int, steps: int
) -> Mixture:
    """Returns the mixture of a run of `steps` steps over sources with so many rows.

    Raises a `UserError` for a text that says nothing, a source that is not there, or
    one that would come more often than its cap.
    """
    mixture = Mixture(
        rows,
        seed=seed,
        shuffle=config.shuffle,
        stages=_stages(config, rows, steps=steps),
    )
    caps = _caps(config.max_epochs, rows)
    _check_caps(mixture, caps, batch_size=config.batch_size, steps=steps)
    return mixture


def _stages(config: DataConfig, rows: Mapping[str, int], *, steps: int) -> list[Stage]:
    """Returns the stages of `data.mixture`, the first of which starts at 0."""
    if not config.temperature > 0:
        raise errors.UserError(
            f"data.temperature={config.temperature} must be above 0; 1 leaves weights "
            "as they are, more evens them out"
        )
    found = entries(config.mixture, key="data.mixture", steps=steps, example=_EXAMPLE)
    parsed = [(entry.start, _weights(entry, rows)) for entry in found]
    if not parsed or parsed[0][0] > 0:
        parsed.insert(0, (0, {name: Fraction(count) for name, count in rows.items()}))
    return [
        Stage(
            start * config.batch_size,
            whole_numbers(_evened(list(weights.values()), config.temperature)),
        )
        for start, weights in parsed
    ]


def _evened(weights: list[Fraction], temperature: float) -> Sequence[Fraction | float]:
    """Returns the weights to the power 1 / temperature, exact where that is 1.

    However cold it is, only a weight of 0 becomes 0.
    """
    if temperature == 1:
        return weights
    largest = max(weights) or Fraction(1)
    shares = [float(weight / largest) for weight in weights]
    least = sys.float_info.min
    return [share and max(least, share ** (1 / temperature)) for share in shares]


def _weights(entry: Entry, rows: Mapping[str, int]) -> dict[str, Fraction]:
    """Returns the weight that an entry gives to every source."""
    weights = dict.fromkeys(rows, Fraction(0))
    for part in entry.what.split():
        name, equals, weight = part.partition("=")
        if not equals:
            raise errors.UserError(
                f"data.mixture has {entry.text!r}: {part!r} is no name=weight; "
                f"{_EXAMPLE}"
            )
        errors.pick(rows, name, "source in data.mixture")
        weights[name] = number(weight, entry.text, example=_EXAMPLE)
    if not any(weights.values()):
        raise errors.UserError(
            f"data.mixture has {entry.text!r}: no weights; {_EXAMPLE}"
        )
    return weights


def _caps(texts: Sequence[str], rows: Mapping[str, int]) -> dict[str, Fraction]:
    """Returns how often each source may come; one that is not in it has no limit."""
    named: dict[str, Fraction] = {}
    others: dict[str, Fraction] = {}
    for text in texts:
        name, equals, times = text.rpartition("=")
        if equals:
            errors.pick(rows, name, "source in data.max_epochs")
            named[name] = number(times, text, example=_EXAMPLE)
        else:
            others = dict.fromkeys(rows, number(text, text, example=_EXAMPLE))
    return others | named


def _check_caps(
    mixture: Mixture, caps: Mapping[str, Fraction], *, batch_size: int, steps: int
) -> None:
    """Raises a `UserError` for the source that goes furthest past its cap."""
    rows = dict(zip(mixture.names, mixture.num_rows.tolist(), strict=True))
    limits = {name: int(cap * rows[name]) for name, cap in caps.items()}
    counts = mixture.counts(steps * batch_size)
    over = [name for name, limit in limits.items() if counts[name] > limit]
    if not over:
        return
    worst = max(over, key=lambda name: Fraction(counts[name], max(1, limits[name])))
    limit = limits[worst]
    low, high = 0, steps  # the most steps whose rows are within the limit
    while high - low > 1:
        middle = (low + high) // 2
        fits = mixture.counts(middle * batch_size)[worst] <= limit
        low, high = (middle, high) if fits else (low, middle)
    total = steps * batch_size
    raise errors.UserError(
        f"source {worst!r} would come {counts[worst] / rows[worst]:.2f} times in "
        f"{steps:,} steps, more than data.max_epochs={float(caps[worst]):g} allows; "
        f"take at most {low:,} steps, or lower its share of the rows from "
        f"{counts[worst] / total:.2%} to {limit / total:.2%} in data.mixture"
    )
