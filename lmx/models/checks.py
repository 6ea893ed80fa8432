"""Which shapes no model can have; each is refused with the option and the remedy."""

from __future__ import annotations

from collections.abc import Callable

from lmx.core.errors import UserError
from lmx.core.model_schema import Architecture, ModelConfig


def check(c: Architecture, *, heads_divide: bool) -> None:
    """Raises a `UserError` for a shape that no model can have.

    Heads whose size was set need not divide the width (`heads_divide`).
    """
    rules: tuple[Callable[[Architecture], None], ...] = (
        _check_numbers,
        _check_layers,
        _check_rope,
        _check_experts,
        _check_latent,
    )
    _check_heads(c, heads_divide=heads_divide)
    for rule in rules:
        rule(c)


def _check_numbers(c: Architecture) -> None:
    for name in ("attention_softcap", "logit_softcap"):
        cap = getattr(c, name)
        if cap is not None and not cap > 0:
            raise UserError(f"model.{name}={cap} must be above 0, or None for no cap")
    if c.token_types is not None and c.token_types < 1:
        raise UserError(
            f"model.token_types={c.token_types} must be at least 1, or None"
        )
    for name in ("embedding_scale", "attention_scale", "window_rope_base"):
        value = getattr(c, name)
        if value is not None and not value > 0:
            raise UserError(f"model.{name}={value} must be above 0, or None")


def _check_heads(c: Architecture, *, heads_divide: bool) -> None:
    if heads_divide and c.width % c.num_heads:
        divisors = [n for n in range(1, c.width + 1) if c.width % n == 0]
        near = min(divisors, key=lambda n: abs(n - c.num_heads))
        raise UserError(
            f"model.num_heads={c.num_heads} does not divide model.width={c.width}; "
            f"nearest that does: {near}, or set model.head_dim"
        )
    if c.num_heads % c.num_kv_heads:
        raise UserError(
            f"model.num_kv_heads={c.num_kv_heads} does not divide "
            f"model.num_heads={c.num_heads}"
        )


def _check_layers(c: Architecture) -> None:
    if not c.pattern:
        raise UserError("model.pattern=() names no mixer; write ('attention',)")
    if "window" in c.pattern and (c.window is None or c.window < 1):
        raise UserError(
            f"model.window={c.window} must be at least 1: model.pattern has 'window'"
        )
    if c.attention == "prefix" and "window" in c.pattern:
        raise UserError(
            "model.attention='prefix' is not for 'window' layers, which would not see "
            "all of a prompt; leave them out of model.pattern"
        )
    if not c.ffns:
        raise UserError("model.ffns=() names no feed-forward; write ('mlp',)")
    if not 0 <= c.dense_layers <= c.num_layers:
        raise UserError(
            f"model.dense_layers={c.dense_layers} must lie in 0..{c.num_layers} "
            "(model.num_layers)"
        )
    if c.sublayers == "parallel" and c.norm_position == "post":
        raise UserError(
            "model.sublayers='parallel' has no single sum to normalise: "
            "model.norm_position='post' needs 'sequential'"
        )


def _check_rope(c: Architecture) -> None:
    if c.positions != "rope":
        return
    size = c.head_dim if c.rope_dim is None else c.rope_dim
    name = "head_dim" if c.rope_dim is None else "rope_dim"
    if size % 2:
        raise UserError(f"model.{name}={size} must be even for model.positions='rope'")
    if not 0 < size <= c.head_dim:
        raise UserError(
            f"model.rope_dim={size} must lie in 2..{c.head_dim} (model.head_dim)"
        )
    if not c.rope_factor > 0:
        raise UserError(f"model.rope_factor={c.rope_factor} must be above 0")
    if c.rope_scaling in (None, "linear"):
        return
    if (c.rope_original_length or 0) < 1:
        raise UserError(
            f"model.rope_original_length={c.rope_original_length} must be the context "
            f"before scaling: model.rope_scaling is {c.rope_scaling!r}"
        )
    if c.rope_turns is not None and not (
        len(c.rope_turns) == 2 and 0 < c.rope_turns[0] < c.rope_turns[1]
    ):
        raise UserError(
            f"model.rope_turns={c.rope_turns} must be two rising numbers above 0"
        )
    if c.rope_scaling == "dynamic" and size < 4:
        raise UserError(f"model.{name}={size} must be at least 4 for 'dynamic' scaling")
    if c.rope_scaling == "longrope":
        for name in ("rope_short_factors", "rope_long_factors"):
            factors = getattr(c, name)
            if len(factors) != size // 2 or min(factors) <= 0:
                raise UserError(
                    f"model.{name} has {len(factors)} entries; {size // 2} numbers "
                    "above 0 are due, one for each rotated pair"
                )


def _check_experts(c: Architecture) -> None:
    if "moe" not in c.ffns or c.dense_layers == c.num_layers:
        return
    if not 1 <= c.experts_per_token <= c.num_experts:
        raise UserError(
            f"model.experts_per_token={c.experts_per_token} must lie in "
            f"1..{c.num_experts} (model.num_experts): model.ffns has 'moe'"
        )
    groups, kept = c.expert_groups, c.expert_groups_kept
    if groups < 1 or c.num_experts % groups:
        raise UserError(
            f"model.expert_groups={groups} does not divide "
            f"model.num_experts={c.num_experts}"
        )
    left = kept * (c.num_experts // groups)
    if not 1 <= kept <= groups or left < c.experts_per_token:
        raise UserError(
            f"model.expert_groups_kept={kept} of {groups} groups leave too few experts "
            f"for model.experts_per_token={c.experts_per_token}, or are too many"
        )
    if groups > 1 and c.router.startswith("sigmoid") and c.num_experts < 2 * groups:
        raise UserError(
            f"model.expert_groups={groups} must have at least two experts each: "
            "a 'sigmoid' router ranks groups by their best two"
        )
    if c.expert_capacity is not None and not c.expert_capacity > 0:
        raise UserError(
            f"model.expert_capacity={c.expert_capacity} must be above 0, or None"
        )
    if c.shared_experts < 0 or not c.router_scale > 0:
        raise UserError(
            f"model.shared_experts={c.shared_experts} must be at least 0 and "
            f"model.router_scale={c.router_scale} above 0"
        )


def _check_latent(c: Architecture) -> None:
    if "latent" not in c.pattern:
        return
    for name in ("kv_latent_dim", "rope_dim"):
        if (getattr(c, name) or 0) < 1:
            raise UserError(
                f"model.{name}={getattr(c, name)} must be at least 1: model.pattern "
                "has 'latent'"
            )
    if c.rope_dim is not None and c.rope_dim >= c.head_dim:
        raise UserError(
            f"model.rope_dim={c.rope_dim} must be below model.head_dim={c.head_dim} "
            "in 'latent' layers"
        )
    for name in ("qk_norm", "attention_sinks"):
        if getattr(c, name) is not None:
            raise UserError(
                f"model.{name}={getattr(c, name)!r} is not for 'latent' layers; set "
                "it to None"
            )
    if c.biases == "qkv":
        raise UserError(
            "model.biases='qkv' is not for 'latent' layers; use 'none', 'attention' "
            "(of which they have the output) or 'all'"
        )


def check_causal(c: ModelConfig, what: str) -> None:
    """Raises a `UserError` unless `c` can do `what`, which predicts tokens."""
    if c.attention == "bidirectional":
        raise UserError(
            f"model.attention={c.attention!r} sees the tokens that it would have to "
            f"predict: {what} needs 'causal' or 'prefix'; lmx embed is what this model "
            "is for"
        )
