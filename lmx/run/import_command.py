"""The command `lmx import`: a published model becomes a workdir, with its proof."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from lmx.core.errors import DONE, DataError, UserError
from lmx.core.model_schema import DType
from lmx.run.activity import Activity
from lmx.run.arguments import Parser

EXAMPLE = """example:
  lmx import path/to/hf-model --workdir=runs/imported
  lmx import model.Q4_K_M.gguf --workdir=runs/imported
  lmx chat --workdir=runs/imported
"""
PARITY = "parity.json"


def main(argv: list[str]) -> int:
    """Parses the command line, imports, returns the exit code."""
    parser = Parser(
        prog="lmx import",
        description="Make a workdir of a published model, compared with its source.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add(
        "source", help="a Hugging Face directory, a .gguf, a Hub name, or a peft folder"
    )
    add("--workdir", required=True, metavar="DIR", help="a new folder for the model")
    add("--dtype", choices=get_args(DType), default="float32", help="of the weights")
    options = parser.parse_args(argv)
    import_model(options.source, Path(options.workdir), dtype=options.dtype)
    return DONE


def import_model(source: str, folder: Path, *, dtype: DType = "float32") -> None:
    """Writes the model of `source` into the new workdir `folder`.

    Raises:
      UserError: the folder is in use or the model cannot be expressed.
      DataError: a file is damaged, or the conversion is past its tolerance.
    """
    import jax

    from lmx import __version__
    from lmx.api import imported_config
    from lmx.core import config as configs
    from lmx.core.new_folder import new_folder
    from lmx.core.workdir import write_atomic
    from lmx.data.built import TEMPLATE
    from lmx.finetune.peft import is_peft
    from lmx.interop.parity import parity
    from lmx.interop.pretrained import open_pretrained
    from lmx.models.counting import parameter_count
    from lmx.training.checkpoints import Checkpoints

    if (folder / "config.json").exists():
        raise UserError(f"--workdir={folder} holds a run already; choose a new folder")
    if is_peft(source):
        import_adapter(source, folder)
        return
    pretrained = open_pretrained(source)
    model = dataclasses.replace(pretrained.model, param_dtype=dtype)
    print(f"reading {parameter_count(model) / 1e6:.1f}M parameters of {source}")
    if folder.is_dir() and [p.name for p in folder.iterdir()] == [PARITY]:
        (folder / PARITY).unlink()  # the proof that an import went wrong makes way
    facts = {
        "lmx": __version__,
        "tokenizer": pretrained.tokenizer.fingerprint,
        "imported": str(source),
        "family": pretrained.family,
    }
    with new_folder(folder) as new, Activity() as activity:
        staged = new.path
        params = pretrained.params(model, watch=activity)
        proof = parity(pretrained, params, model, watch=activity)
        write_atomic(staged / PARITY, json.dumps(proof, indent=2) + "\n")
        if proof["ok"]:
            activity("writing", 0, sum(x.nbytes for x in jax.tree.leaves(params)))
            pretrained.tokenizer.save(staged / "tokenizer")
            if pretrained.chat_template is not None:
                write_atomic(staged / TEMPLATE, pretrained.chat_template)
            with Checkpoints(staged / "checkpoints", facts=facts) as checkpoints:
                with new.held():  # Orbax would leave threads behind that write
                    checkpoints.save(0, {"params": params})
                checkpoints.wait()
            config = configs.to_json(imported_config(model))
            write_atomic(staged / "config.json", config)
    if not proof["ok"]:
        raise DataError(f"the conversion is wrong, see {folder / PARITY}: {proof}")
    print(report(proof))
    verb = "chat" if pretrained.chat_template else 'generate --prompt="Once"'
    if model.attention == "bidirectional":
        verb = 'embed --similarity "A cat" "A kitten" "Tax law"'
    print(f"written: {folder}\nnext:    lmx {verb} --workdir={folder}")


def import_adapter(source: str, folder: Path) -> None:
    """Writes an adapter of peft as a run on the model that it names.

    The workdir holds the adapter and names its base, as a run of `lmx train` does.
    Raises a `UserError` or `DataError` where it cannot be joined with it.
    """
    from lmx import __version__
    from lmx.api import load
    from lmx.core import config as configs
    from lmx.core.new_folder import new_folder
    from lmx.core.workdir import write_atomic
    from lmx.data.built import TEMPLATE
    from lmx.finetune.base import base_facts
    from lmx.training.checkpoints import Checkpoints

    model = load(source)
    assert model.change is not None
    facts = {
        "lmx": __version__,
        "tokenizer": model.tokenizer.fingerprint,
        "imported": str(source),
        "base": base_facts(str(model.config.model.init_from)),
    }
    with new_folder(folder) as new:
        model.tokenizer.save(new.path / "tokenizer")
        if model.chat_template is not None:
            write_atomic(new.path / TEMPLATE, model.chat_template)
        with Checkpoints(new.path / "checkpoints", facts=facts) as checkpoints:
            with new.held():
                checkpoints.save(0, {"params": model.change.params})
            checkpoints.wait()
        write_atomic(new.path / "config.json", configs.to_json(model.config))
    count, total = model.change.adapter.counts()
    print(f"written: {folder}, {count:,} parameters beside {total:,} of its base")


def report(proof: dict[str, Any]) -> str:
    """Returns the proof in words."""
    weights, logits = proof["weights"], proof["logits"]
    rounded = weights["max_abs_difference"]
    but = f", rounded by at most {rounded:.1e}" if rounded else ""
    lines = [f"parity:  {weights['tensors']} tensors are those of the source{but}"]
    if logits is not None:
        lines.append(
            f"         logits differ by at most {logits['max_abs_difference']:.1e} "
            f"from {logits['reference']} (KL {logits['kl_divergence']:.1e})"
        )
    states = proof["hidden_states"]
    if states is not None:
        lines.append(
            f"         hidden states differ by at most "
            f"{states['max_abs_difference']:.1e} from {states['reference']}"
        )
    for what, past in (logits or states or {}).get("past", {}).items():
        if not past:
            bound = what.replace("_", " ")
            lines.append(f"         not compared past its {bound}, which is too long")
    if "note" in proof:
        lines.append(f"         {proof['note']}")
    for why in dict.fromkeys(proof["unused"].values()):
        names = [name for name, reason in proof["unused"].items() if reason == why]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"unused:  {', '.join(names[:3])}{more}: {why}")
    return "\n".join(lines)
