"""LoRA adapters as the library `peft` keeps them: a folder of JSON and safetensors.

`adapter_config.json` says how, `adapter_model.safetensors` holds for each module of the
published model `lora_A.weight` [r, in] and `lora_B.weight` [out, r], of DoRA also
`lora_magnitude_vector` [out]. What this cannot say, or lmx cannot do, is refused by
name.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.core.model_schema import Architecture
from lmx.core.schema import AdapterConfig
from lmx.core.text_files import read_json
from lmx.core.trees import flatten_with_names, nest
from lmx.finetune.adapter import Adapter, Change
from lmx.interop.hf_config import write_config
from lmx.interop.hf_families import FAMILIES
from lmx.interop.names import Layout
from lmx.interop.safetensors_file import SINGLE, SafetensorsFile, write_safetensors
from lmx.interop.weights import Piece, from_theirs, pieces, split_parts, to_theirs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_magnitude_vector": "magnitude",
}
# What does not change what a trained adapter computes, or is read by name.
HARMLESS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights"),
    *("layers_pattern", "loftq_config", "lora_alpha", "lora_dropout"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("rank_pattern", "revision", "runtime_config", "target_modules", "task_type"),
    *("use_dora", "use_rslora"),
}
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


class Saved(NamedTuple):
    """A folder of peft: how, of which model, and the arrays of each module."""

    config: AdapterConfig
    base: str
    modules: Mapping[str, Mapping[str, np.ndarray]]


def is_peft(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder holds an adapter of peft."""
    return (Path(folder) / CONFIG).is_file()


def read_peft(folder: str | os.PathLike[str]) -> Saved:
    """Reads a folder that peft, or `write_peft`, has written.

    Raises:
      UserError: it uses what lmx cannot do; the setting is named.
      DataError: a file is missing or damaged.
    """
    path = Path(folder)
    values = read_json(path / CONFIG)
    _refuse(values, path / CONFIG)
    file = SafetensorsFile(path / WEIGHTS)
    modules: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for name in file.entries:
        end = next((end for end in PARTS if name.endswith(end)), None)
        if end is None or not name.startswith(PREFIX):
            raise UserError(
                f"{file.path} holds {name}, which is no part of a low-rank change of a "
                "linear layer; merge it with peft, and import the model"
            )
        module = name.removeprefix(PREFIX).removesuffix(end)
        modules[module][PARTS[end]] = file.read(name)
    method = "rslora" if values.get("use_rslora") else "lora"
    method = "dora" if values.get("use_dora") else method
    config = AdapterConfig(
        method=method,  # type: ignore[arg-type]
        rank=values["r"],
        alpha=float(values["lora_alpha"]),
    )
    return Saved(config, str(values.get("base_model_name_or_path")), modules)


def _refuse(values: Mapping[str, Any], where: Path) -> None:
    """Raises a `UserError` for a setting that lmx would not follow."""

    def refusal(name: str, why: str) -> UserError:
        return UserError(
            f"{where}: {name}={values.get(name)!r} {why}; merge it with peft "
            "(merge_and_unload), and import the model"
        )

    if values.get("peft_type") != "LORA":
        raise refusal("peft_type", "is not what lmx reads, which is 'LORA'")
    for name, kind in (("r", int), ("lora_alpha", (int, float))):
        value = values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise refusal(name, "must be a number above 0")
    if values.get("bias", "none") != "none":
        raise refusal("bias", "trains biases beside the low rank")
    if values.get("use_rslora") and values.get("use_dora"):
        raise refusal("use_rslora", "and use_dora are not one method in lmx")
    first = str(values.get("init_lora_weights", "")).lower()
    if first.startswith(CHANGE_THE_BASE):
        raise refusal("init_lora_weights", "has changed the weights of the base")
    for name in ("rank_pattern", "alpha_pattern"):
        if values.get(name):
            raise refusal(name, "gives layers ranks of their own")
    for name, value in values.items():
        if value and name not in HARMLESS:
            raise refusal(name, "is not among what lmx can do")


def change_of(
    saved: Saved, model: Architecture, family: str | None, *, where: object
) -> Change:
    """Returns the adapter of a folder for the model that it changes.

    Raises:
      DataError: it is of another model: a module is not there, or of another shape.
      UserError: it changes only some layers of a stack, or what has no single product.
    """
    groups = pieces(model, FAMILIES[write_config(model, family)[0]].rows)
    found: dict[str, dict[tuple[int, ...], dict[str, np.ndarray]]] = {}
    for module, arrays in saved.modules.items():
        group = groups.get(f"{module}.weight")
        if group is None:
            raise DataError(
                f"{where} changes {module}, which its base {saved.base} has not: it is "
                "the adapter of another model; say of which, base=…"
            )
        parts = _ours(model, group, arrays, saved.config, f"{where}: {module}")
        for piece, part in zip(group, parts, strict=True):
            found.setdefault(piece.leaf, {})[piece.at] = part
    targets = tuple(f"^{name}$" for name in sorted(found))
    config = AdapterConfig(
        method=saved.config.method,
        rank=saved.config.rank,
        alpha=saved.config.alpha,
        targets=targets,
    )
    adapter = Adapter(config, model)
    named = {}
    for name, layers in found.items():
        count = adapter.matrix(name).shape[0]
        if len(layers) != count:
            raise UserError(
                f"{where} changes {len(layers)} of the {count} layers of {name}; lmx "
                "changes all: merge it with peft (merge_and_unload), and import that"
            )
        for part in layers[0,]:
            stack = [layers[i,][part] for i in range(count)]
            named[f"{name}/{part}"] = np.stack(stack).astype(np.float32)
    return Change(adapter, nest(named))


def write_peft(
    folder: str | os.PathLike[str], change: Change, *, base: str, family: str | None
) -> None:
    """Writes an adapter into an empty folder, for `peft.PeftModel.from_pretrained`.

    `base` is what the folder says it changes.

    Raises:
      UserError: peft cannot express it, for it trains parameters in full or changes
        kernels that the published model has fused with others.
    """
    adapter, config = change.adapter, change.adapter.config
    if config.method is None or adapter.trained:
        raise UserError(
            f"adapter.train={list(config.train)} has no place in an adapter of peft; "
            "export the whole model: --to=hf"
        )
    family, _ = write_config(adapter.model, family)
    leaves = dict(flatten_with_names(change.params))
    tensors, modules, conv = {}, [], False
    groups = pieces(adapter.model, FAMILIES[family].rows)
    for name, group in groups.items():
        piece = group[0]
        if not any(p.leaf in adapter.targets for p in group):
            continue
        if len(group) > 1:
            raise UserError(
                f"{piece.leaf} is part of {name} in {family!r}, of which peft would "
                "change the whole by one A; export the whole model: --to=hf"
            )
        conv |= piece.row.layout == "conv"
        module = name.removesuffix(".weight")
        modules.append(module)
        for end, part in PARTS.items():
            if f"{piece.leaf}/{part}" in leaves:
                value = np.asarray(leaves[f"{piece.leaf}/{part}"][piece.at[0]])
                tensors[f"{PREFIX}{module}{end}"] = _theirs(adapter, piece, part, value)
    path = Path(folder)
    write_safetensors(
        path,
        [(name, x.shape, partial(np.asarray, x)) for name, x in tensors.items()],
        np.dtype(np.float32),
        shard_bytes=2**62,
    )
    (path / SINGLE).rename(path / WEIGHTS)
    whole = [name.removesuffix(".weight") for name in groups]
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": _shortest(modules, whole),
        "bias": "none",
        "fan_in_fan_out": conv,
        "use_rslora": config.method == "rslora",
        "use_dora": config.method == "dora",
        "inference_mode": True,
    }
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (path / CONFIG).write_text(text, encoding="utf8")


def _ours(model, group: list[Piece], arrays, config: AdapterConfig, where: str):
    """Returns a, b and magnitude of each piece of a module: pieces share A."""
    wanted = {"a", "b"} | ({"magnitude"} if config.method == "dora" else set())
    if set(arrays) != wanted:
        raise DataError(f"{where} has {sorted(arrays)} where {sorted(wanted)} is due")
    rank, sides = config.rank, [_sides(piece) for piece in group]
    outputs = sum(o for _, o in sides)
    shapes = {"a": (rank, sides[0][0]), "b": (outputs, rank), "magnitude": (outputs,)}
    for part, value in arrays.items():
        value = value.reshape(-1) if part == "magnitude" else value
        if value.shape != shapes[part]:
            raise DataError(
                f"{where}: {part} has shape {value.shape} where {shapes[part]} is due "
                f"for rank {rank}: it is the adapter of another model"
            )
    found: list[dict[str, np.ndarray]] = [{"a": arrays["a"].T} for _ in group]
    for part in wanted - {"a"}:
        columns = rank if part == "b" else 1
        rows = [_as_outputs(piece, columns) for piece in group]
        value = np.asarray(arrays[part]).reshape(outputs, columns)
        for own, row, share in zip(
            found, rows, split_parts(value, model, rows), strict=True
        ):
            ours = from_theirs(row, share).reshape(columns, -1)
            own[part] = ours if part == "b" else ours[0]
    return found


def _theirs(adapter: Adapter, piece: Piece, part: str, value: np.ndarray):
    """Returns an array of ours as peft has it."""
    if part == "a":
        return value.T
    row = _as_outputs(piece, value.shape[0] if part == "b" else 1)
    published = to_theirs(row, value.reshape(row.shape))
    return published if part == "b" else published[:, 0]


def _as_outputs(piece: Piece, columns: int) -> Piece:
    """Returns a piece like this one, but for `columns` inputs: heads are outputs."""
    cut = len(piece.shape) - 1 if "/out/" in piece.leaf or len(piece.shape) == 2 else 1
    layout: Layout = "turned" if piece.row.layout == "turned" else "linear"
    row = piece.row._replace(layout=layout)
    return piece._replace(leaf="", shape=(columns, *piece.shape[cut:]), row=row)


def _sides(piece: Piece) -> tuple[int, int]:
    """Returns the numbers of inputs and outputs of a piece."""
    outputs = int(np.prod(_as_outputs(piece, 1).shape))
    return int(np.prod(piece.shape)) // outputs, outputs


def _shortest(modules: list[str], others: list[str]) -> list[str]:
    """Returns names that peft finds these modules by, and no others."""
    ends = {".".join(module.rsplit(".", 2)[-2:]) for module in modules}
    found = [m for m in others if any(m.endswith(f".{end}") for end in ends)]
    return sorted(ends) if sorted(found) == sorted(modules) else sorted(modules)
