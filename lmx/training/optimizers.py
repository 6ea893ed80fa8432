"""Optimizers, all from optax: which gradient becomes which update.

An optimizer here takes mean gradients and gives updates to add to the parameters:
its schedule, moments and decoupled weight decay are inside. Clipping is not, since
the step needs the norm anyway (`clip_by_norm`), and neither is the decision to skip a
step (`guard.py`).

Parameters of the blocks are stacked over layers: `blocks/0/mlp/up/kernel` is
`[layers, in, out]`, and so is what `tail` holds of a last, shorter period. Whatever
looks at a matrix as a whole (Muon, Adafactor) must look at each layer's own;
`matrix_axes` says where it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from lmx.core.errors import UserError, pick
from lmx.core.schema import OptimConfig
from lmx.core.trees import compile_patterns, map_with_names, mask_by_path
from lmx.training.schedules import make_schedule

Params: TypeAlias = Any
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
MatrixAxes: TypeAlias = optax.contrib.MuonDimensionNumbers

_STACKED = re.compile(r"(^|/)(dense|blocks|tail)/")
_MATRIX = re.compile(r"(^|/)(dense|blocks|tail)/(.*/)?kernel(/[ab])?$")
_INTO_HEADS = re.compile(r"(^|/)(query(_up)?(_rope|_nope)?|key|value)/kernel$")
_EXPERTS = re.compile(r"(^|/)experts_(gate|up|down)/kernel$")
# Adafactor factors a matrix only where both sides reach this (Shazeer, 1804.04235,
# as in optax); smaller ones would save nothing.
_FACTOR_FROM = 128


def matrix_axes(name: str, rank: int) -> MatrixAxes | None:
    """Returns the input and output axes of a block's kernel, None for other leaves.

    Kernels are `[layers, in, out]`; `query`, `key` and `value` may be
    `[layers, D, N, H]` and the projection back `[layers, N, H, D]`. Heads and head size
    count as one axis: Muon was measured on whole projections, query, key and value
    apart (Jordan, 2024; Liu et al., 2502.16982). Experts are `[layers, E, in, out]`.
    The axes of layers and experts are in neither. An adapter's two matrices, `kernel/a`
    and `kernel/b`, are `[layers, in, out]`.
    """
    if not _MATRIX.search(name):
        return None
    if rank == 3:
        return MatrixAxes(reduction_axis=(1,), output_axis=(2,))
    if rank == 4 and _EXPERTS.search(name):
        return MatrixAxes(reduction_axis=(2,), output_axis=(3,))
    if rank == 4 and _INTO_HEADS.search(name):
        return MatrixAxes(reduction_axis=(1,), output_axis=(2, 3))
    if rank == 4:
        return MatrixAxes(reduction_axis=(1, 2), output_axis=(3,))
    return None


def _decays(config: OptimConfig) -> Callable[[Params], Params]:
    """Returns params → which of them are decayed."""

    def mask(params: Params) -> Params:
        return jax.tree.map(lambda no: not no, mask_by_path(params, config.no_decay))

    return mask


def _adamw(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    return optax.adamw(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_decays(config),
    )


def _lion(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    return optax.lion(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=_decays(config),
    )


def _factored_rms(config: OptimConfig) -> optax.GradientTransformation:
    """Scales by Adafactor's second moment, each layer's kernel seen as one matrix.

    Optax factors over the two longest axes of a leaf, which heads would hide.
    """
    inner = optax.scale_by_factored_rms(
        min_dim_size_to_factor=_FACTOR_FROM,
        epsilon=config.epsilon**2,
        decay_rate_fn=lambda step, rate: jnp.minimum(
            1.0 - jnp.asarray(step + 1, jnp.float32) ** -rate, config.beta2
        ),
    )

    def as_matrix(name: str, x: jax.Array) -> jax.Array:
        axes = matrix_axes(name, x.ndim)
        if axes is None:
            return x
        sides = [
            math.prod(x.shape[i] for i in part)
            for part in (axes.reduction_axis, axes.output_axis)
        ]
        return x.reshape(-1, *sides) if min(sides) >= _FACTOR_FROM else x

    def init(params: Params) -> optax.OptState:
        return inner.init(map_with_names(as_matrix, params))

    def update(
        grads: Params, state: optax.OptState, params: Params = None
    ) -> tuple[Params, optax.OptState]:
        updates, state = inner.update(
            map_with_names(as_matrix, grads), state, map_with_names(as_matrix, params)
        )
        return jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads), state

    return optax.GradientTransformation(init, update)


def _clip_rms_by_layer(threshold: float) -> optax.GradientTransformation:
    """Adafactor's update clipping, which stacking must not join over layers."""
    inner = optax.clip_by_block_rms(threshold)

    def clip(name: str, x: jax.Array) -> jax.Array:
        def one(block: jax.Array) -> jax.Array:
            return inner.update(block, optax.EmptyState())[0]

        return jax.vmap(one)(x) if _STACKED.search(name) else one(x)

    return optax.stateless(lambda updates, params: map_with_names(clip, updates))


def _adafactor(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Adafactor with momentum and a plain learning rate.

    As Zhai et al. (2106.04560) use it: the rate is not multiplied by the size of the
    parameter, so that `learning_rate` means what it means for AdamW, and the decay of
    the second moment, 1 - t^-0.8, stops rising at `beta2`.
    """
    return optax.chain(
        _factored_rms(config),
        _clip_rms_by_layer(1.0),
        optax.ema(config.beta1, debias=False),
        optax.add_decayed_weights(config.weight_decay, mask=_decays(config)),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


def _muon(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Muon for each layer's matrices, AdamW for all else.

    Updates of matrices have the root mean square 0.2 that AdamW's have, whatever
    their shape (Liu et al., 2502.16982), so that one learning rate serves both;
    `matrix_learning_rate` parts them. The momentum is Nesterov's.
    """

    def axes(params: Params) -> Params:
        return map_with_names(lambda name, x: matrix_axes(name, x.ndim), params)

    def labels(params: Params) -> Params:
        tree = map_with_names(
            lambda name, x: "matrix" if matrix_axes(name, x.ndim) else "vector", params
        )
        if "matrix" not in jax.tree.leaves(tree):
            raise UserError(
                "optim.name is 'muon', but no parameter is a matrix of a block "
                "(blocks/…/kernel, stacked over layers); use 'adamw'"
            )
        return tree

    matrices = optax.contrib.muon(
        make_schedule(config, steps, config.matrix_learning_rate),
        beta=config.beta1,
        weight_decay=config.weight_decay,
        weight_decay_mask=_decays(config),
        consistent_rms=0.2,
        muon_weight_dimension_numbers=axes,
    )
    return optax.partition(
        {"matrix": matrices, "vector": _adamw(config, steps)}, labels
    )


class HutchinsonState(NamedTuple):
    """The key, as raw bits, that the next random signs are drawn from."""

    key: jax.Array


def hutchinson_diagonal() -> Optimizer:
    """Estimates the diagonal of the Hessian as s ∗ Hs for random signs s.

    Optax's estimator differentiates a scalar `obj_fn` itself. This one takes
    `grad_fn`, the function that gives the step its gradients, so that accumulation
    and the mean over devices are those of the gradient, under jit and pmap alike.
    """

    def init(params: Params) -> HutchinsonState:
        del params
        return HutchinsonState(jax.random.key_data(jax.random.key(0)))

    def update(
        grads: Params,
        state: HutchinsonState,
        params: Params = None,
        *,
        grad_fn: Callable[[Params], Params] | None = None,
        **extra: Any,
    ) -> tuple[Params, HutchinsonState]:
        del grads, extra
        if grad_fn is None:
            raise TypeError("sophia needs update(grads, state, params, grad_fn=…)")
        key, now = jax.random.split(jax.random.wrap_key_data(state.key))
        signs = optax.tree.random_like(
            now, params, jax.random.rademacher, dtype=jnp.float32
        )
        _, product = jax.jvp(grad_fn, (params,), (signs,))
        diagonal = jax.tree.map(jnp.multiply, product, signs)
        return diagonal, HutchinsonState(jax.random.key_data(key))

    return optax.GradientTransformationExtraArgs(init, update)


def _sophia(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Sophia-H (Liu et al., 2305.14342): a new Hessian diagonal every 10 steps."""
    return optax.contrib.sophia(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        weight_decay_mask=_decays(config),
        hessian_diagonal_fn=hutchinson_diagonal(),
    )


def _schedule_free_adamw(
    config: OptimConfig, steps: int
) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al., 2405.15682); see `eval_params`."""
    if config.schedule != "constant":
        raise UserError(
            "optim.name is 'schedule_free_adamw', which replaces the decay of the "
            f"learning rate, but optim.schedule is {config.schedule!r}; set "
            "optim.schedule to 'constant' (the warm-up stays)"
        )
    if config.beta1 <= 0.0:
        raise UserError(
            f"optim.beta1 is {config.beta1}; 'schedule_free_adamw' divides by it: "
            "choose it above 0, such as 0.9"
        )
    schedule = make_schedule(config, steps)
    base = optax.chain(
        optax.scale_by_rms(
            config.beta2,
            eps=config.epsilon,
            eps_in_sqrt=False,
            bias_correction=True,
        ),
        optax.add_decayed_weights(config.weight_decay, mask=_decays(config)),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.contrib.schedule_free(base, schedule, b1=config.beta1)


OPTIMIZERS: Mapping[str, Callable[[OptimConfig, int], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sophia": _sophia,
    "schedule_free_adamw": _schedule_free_adamw,
}


def _to_float32(tree: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _in_float32(inner: optax.GradientTransformation) -> Optimizer:
    """Runs an optimizer on float32 copies, so that its state and updates are float32.

    For parameters that are float32 already the copies are free.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> optax.OptState:
        return inner.init(_to_float32(params))

    def update(
        grads: Params, state: optax.OptState, params: Params = None, **extra: Any
    ) -> tuple[Params, optax.OptState]:
        return inner.update(_to_float32(grads), state, _to_float32(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(config: OptimConfig) -> None:
    compile_patterns(config.no_decay)
    for key in ("beta1", "beta2", "ema_decay"):
        value = getattr(config, key)
        if value is not None and not 0.0 <= value < 1.0:
            raise UserError(f"optim.{key} is {value}; a decay is at least 0, below 1")
    positive = ("learning_rate", "matrix_learning_rate", "epsilon")
    for key in (*positive, "clip_norm", "spike_sigmas"):
        value = getattr(config, key)
        if value is not None and not value > 0.0:
            off = "" if key in positive else ", or None to turn it off"
            raise UserError(f"optim.{key} is {value}; it must be above 0{off}")
    if not config.weight_decay >= 0.0:
        raise UserError(
            f"optim.weight_decay is {config.weight_decay}; it must be 0 (none) or more"
        )


def make_optimizer(config: OptimConfig, *, steps: int) -> Optimizer:
    """Returns the optimizer of a run of `steps` steps.

    Call `update(grads, state, params, grad_fn=grad_fn)` and add the updates with
    `optax.apply_updates`. `grad_fn` maps parameters to the gradients of this step's
    batch, before clipping; only Sophia calls it. State and updates are float32
    whatever the parameters are, each leaf of the state has the shape of a parameter
    (see `trees.mirror`) or is small, and the count inside the state moves only with
    accepted steps.

    Raises:
        UserError: an unknown optimizer or schedule, or an option out of its range.
    """
    build = pick(OPTIMIZERS, config.name, "optim.name")
    _check(config)
    return _in_float32(build(config, steps))


def eval_params(
    config: OptimConfig, opt_state: optax.OptState, params: Params
) -> Params:
    """Returns the parameters to evaluate, sample from and export.

    They are `params`, except for schedule-free, whose average they are.
    """
    if config.name != "schedule_free_adamw":
        return params
    average = optax.contrib.schedule_free_eval_params(opt_state, params)
    return jax.tree.map(lambda a, p: a.astype(p.dtype), average, params)


def clip_by_norm(
    grads: Params, norm: jax.typing.ArrayLike, max_norm: float | None
) -> Params:
    """Returns gradients scaled so that their global norm is at most `max_norm`.

    Gradients of a smaller norm come back bit for bit, and so do those of a norm that
    is NaN, which the guard refuses. `norm` is `optax.tree.norm(grads)`, of all
    devices; None does not clip.
    """
    if max_norm is None:
        return grads
    norm = jnp.asarray(norm, jnp.float32)
    scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def init_ema(params: Params) -> Params:
    """Returns the average before the first step: a float32 copy."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def update_ema(
    ema: Params, params: Params, decay: float, step: jax.typing.ArrayLike
) -> Params:
    """Returns the average moved towards `params`, the weights after step `step`.

    The decay is min(decay, step / (step + 10)). So at step 0 the average *is* the
    weights and initial ones leave no bias; until 1 / (1 - decay) is a tenth of the
    steps taken, the window is about that tenth, as in TensorFlow's moving averages.
    """
    step = jnp.asarray(step, jnp.float32)
    keep = jnp.minimum(decay, step / (step + 10.0))
    return jax.tree.map(
        lambda e, p: keep * e + (1.0 - keep) * p.astype(jnp.float32), ema, params
    )
