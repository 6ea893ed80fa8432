"""Merged models: each method against its formula, and the workdir that is left."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lmx.api import load
from lmx.core import config as configs
from lmx.core.config import freeze
from lmx.core.errors import UserError
from lmx.core.trees import flatten_with_names
from lmx.finetune.merging import METHODS, merge_leaf
from lmx.run.merge_command import main, merge
from lmx.run.train import train

rng = np.random.default_rng(0)
A, B, C = rng.normal(size=(3, 2, 5, 3))


def rotated(a, b, share):
    """Returns slerp as a rotation in the plane of a and b: Gram and Schmidt's."""
    u = a / np.linalg.norm(a)
    v = b / np.linalg.norm(b)
    w = v - (u * v).sum() * u
    angle = np.arctan2(np.linalg.norm(w), (u * v).sum())
    w = w / np.linalg.norm(w)
    units = [a / np.linalg.norm(a), v]
    turned = np.cos(share * angle) * u + np.sin(share * angle) * w
    # Leaves keep their lengths: the weights are those that turn the units.
    weights = np.linalg.lstsq(
        np.stack([x.ravel() for x in units], 1), turned.ravel(), rcond=None
    )[0]
    return weights[0] * a + weights[1] * b


def by_layer(function, *leaves):
    return np.stack([function(*layer) for layer in zip(*leaves, strict=True)])


CASES = [
    ("uniform", [A, B, C], {"weights": (1, 1, 2)}, (A + B + 2 * C) / 4),
    ("ema", [A, B, C], {"decay": 0.8}, 0.8 * (0.8 * A + 0.2 * B) + 0.2 * C),
    (
        "slerp",
        [A, B],
        {"share": 0.3},
        by_layer(lambda a, b: rotated(a, b, 0.3), A, B),
    ),
    (
        "task_arithmetic",
        [A, B],
        {"base": C, "weights": (0.5, -1.0)},
        C + 0.5 * (A - C) - (B - C),
    ),
]


@pytest.mark.parametrize(("name", "leaves", "options", "expected"), CASES)
def test_methods_are_their_formulas_layer_by_layer(name, leaves, options, expected):
    assert {case[0] for case in CASES} == set(METHODS)
    found = merge_leaf("blocks/0/mlp/up/kernel", METHODS[name], leaves, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_slerp_keeps_lengths_and_ends_and_goes_straight_between_the_parallel():
    unit_a, unit_b = A / np.linalg.norm(A), B / np.linalg.norm(B)
    middle = METHODS["slerp"]([unit_a, unit_b], share=0.4)
    assert np.linalg.norm(middle) == pytest.approx(1)
    for share, end in ((0.0, A), (1.0, B)):
        np.testing.assert_allclose(METHODS["slerp"]([A, B], share=share), end)
    between = METHODS["slerp"]([A, 3 * A], share=0.5)
    np.testing.assert_allclose(between, 2 * A)
    assert not METHODS["slerp"]([0 * A, 0 * A], share=0.5).any()


@pytest.fixture(scope="module")
def other(base, tmp_path_factory):
    """The base, trained on."""
    folder = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(base, folder)
    config = configs.from_json((folder / "config.json").read_text())
    train(freeze({**json.loads(configs.to_json(config)), "steps": 10}), folder, say=str)
    return folder


def test_a_merge_is_a_workdir_that_loads(base, other, tmp_path, capsys):
    out = tmp_path / "merged"
    argv = [
        "--method=uniform",
        "--weights=1,3",
        f"{base}@8",
        str(other),
        f"--out={out}",
    ]
    assert main(argv) == 0
    assert "uniform of" in capsys.readouterr().out
    one, two, merged = (load(w) for w in (base, other, out))
    leaves = [flatten_with_names(m.params) for m in (one, two, merged)]
    for (name, a), (_, b), (_, found) in zip(*leaves, strict=True):
        wanted = (np.asarray(a, np.float64) + 3 * np.asarray(b, np.float64)) / 4
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=name)
    assert isinstance(merged.generate("red", max_new_tokens=2), str)
    with pytest.raises(UserError, match="there already; choose a new folder"):
        main(argv)


def edited(folder, where, **changes):
    shutil.copytree(folder, where)
    config = json.loads((where / "config.json").read_text())
    config["model"].update(changes)
    (where / "config.json").write_text(json.dumps(config))
    return where


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": ["A", "B@7"]}, r"B@7: no such step; there are \[8\]|4, 8"),
        ({"models": ["A", "nowhere"]}, "nowhere holds no run"),
        ({"models": ["A"]}, "needs at least 2 models"),
        ({"method": "slerp", "models": ["A", "B", "A"]}, "between 2 models, not 3"),
        ({"method": "slerp", "weights": (1, 1)}, "--weights is not for --method=slerp"),
        ({"method": "slerp", "share": 1.5}, r"--share=1.5 must lie in 0\.\.1"),
        ({"method": "task_arithmetic"}, "say which model that is"),
        ({"weights": (1, 1, 1)}, "3 numbers for 2 models"),
        ({"weights": (1, -1)}, "sum above 0"),
        ({"models": ["A", "deeper"]}, "model.rope_base is 10000.0 in .* and 5.0 in"),
    ],
)
def test_what_does_not_merge_is_named(options, said, base, tmp_path):
    if options.get("models", [])[-1:] == ["deeper"]:
        edited(base, tmp_path / "deeper", rope_base=5.0)
    places = {"A": str(base), "B": str(base), "B@7": f"{base}@7"}
    places["deeper"] = str(tmp_path / "deeper")
    models = [places.get(m, m) for m in options.get("models", ["A", "B"])]
    rest = {k: v for k, v in options.items() if k != "models"}
    with pytest.raises(UserError, match=said):
        merge(models, tmp_path / "out", **rest)
    assert not (tmp_path / "out").exists()
