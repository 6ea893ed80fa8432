"""The fields of a `config.json`, or keys of a GGUF file, each taken once and checked.

What is left over and not known to be harmless is refused by name, so that no field is
ever dropped in silence. Which fields a family has is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmx.core.errors import UserError

# Fields that say nothing about what the weights compute.
HARMLESS = {
    "model_type",
    "architectures",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "_name_or_path",
    "attention_dropout",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "gradient_checkpointing",
    "cls_token_id",
    "mask_token_id",
    "classifier_dropout",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "task_specific_params",
    "auto_map",
    "id2label",
    "label2id",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "problem_type",
    "cache_implementation",
    "n_ctx",
    "n_special",
    "predict_special_tokens",
    "output_past",
    "tokenizer_class",
    "custom_pipelines",
    "max_sequence_length",
    "is_llama_config",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "_num_labels",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}
# Fields that published files spell out, of parts that their models do not have.
ABSENT = {
    "use_mrope": False,
    "rope_interleaved": False,
    "lm_head_bias": False,
    "qkv_bias": False,
    "shared_expert_intermediate_size": 0,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}


LARGEST, MOST_LAYERS = 2**31, 10_000  # no size of a model reaches these


class Fields:
    """The fields of a file, each taken once."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = ""):
        self._left, self.where, self._prefix = dict(values), where, prefix

    def take(self, name: str, default: Any = None) -> Any:
        """Returns the field `name`; `default` where it is missing or null."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def put(self, name: str, value: Any) -> None:
        """Sets a field that older files leave out."""
        self._left[name] = value

    def look(self, name: str, default: Any) -> Any:
        """Returns a field that will be taken later."""
        value = self._left.get(name)
        return default if value is None else value

    def number(self, name: str, default: int | None = None) -> int:
        """Returns a whole number above 0, or refuses the field."""
        value = self.take(name, default)
        if type(value) is not int or not 0 < value < LARGEST:
            raise self.refusal(name, value, "a whole number above 0 is due")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Returns a finite number above 0, or refuses the field."""
        value = self.take(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.refusal(name, value, "a finite number above 0 is due")
        return float(value)

    def layers(self) -> int:
        """Returns the number of layers, which is taken later."""
        count = self._left.get("num_hidden_layers")
        if type(count) is not int or not 0 < count < MOST_LAYERS:
            raise self.refusal(
                "num_hidden_layers", count, f"1 to {MOST_LAYERS} are due"
            )
        return count

    def cap(self, name: str) -> float | None:
        """Returns a number above 0, or None for a missing or null field."""
        return None if self._left.get(name) is None else self.real(name)

    def flag(self, name: str) -> bool:
        """Returns true or false, which it is where the field is missing."""
        value = self.take(name, False)
        if type(value) is not bool:
            raise self.refusal(name, value, "true or false is due")
        return value

    def reals(self, name: str) -> tuple[float, ...]:
        """Returns a list of finite numbers above 0."""
        values = self.take(name)
        fine = isinstance(values, list) and all(
            type(v) in (int, float) and 0 < v < math.inf for v in values
        )
        if not fine:
            raise self.refusal(name, values, "a list of numbers above 0 is due")
        return tuple(float(v) for v in values)

    def each_layer(self, name: str, kind: type) -> list | None:
        """Returns a list with a value of `kind` for each layer, None if missing."""
        values = self.take(name)
        if values is None:
            return None
        fine = isinstance(values, list) and all(type(v) is kind for v in values)
        if not fine or len(values) != self.layers():
            raise self.refusal(name, values, "a value for each layer is due")
        return values

    def table(self, name: str) -> dict[str, Any]:
        """Returns a field that is a table, empty where it is missing."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise self.refusal(name, value, "a table is due")
        return dict(value)

    def only(self, name: str, *supported: Any) -> None:
        """Takes `name`, which must have a supported value; the first is the default."""
        value = self.take(name, supported[0])
        if value not in supported:
            known = " or ".join(map(repr, supported))
            raise self.refusal(name, value, f"lmx can express {known}")

    def finish(self) -> None:
        """Refuses what nobody took."""
        for name, value in self._left.items():
            if name in HARMLESS or value is None:
                continue
            if name not in ABSENT:
                raise self.refusal(name, value, "lmx does not know this field")
            if value != ABSENT[name]:
                raise self.refusal(name, value, f"lmx can express {ABSENT[name]!r}")

    def refusal(self, name: str, value: Any, why: str) -> UserError:
        """Returns the error that refuses a field."""
        return UserError(
            f"{self.where}: {self._prefix}{name}={value!r:.60} cannot be imported; "
            f"{why}"
        )
