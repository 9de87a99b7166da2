"""The optimiser with gradient clipping, and the learning-rate schedule (docs/crt.md, 8.2)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from crt_jax import sharding
from crt_jax.models.base import Model
from crt_jax.runs.train_state import moving_average
from crt_jax.types import Array, Tree

# The reference divides by norm + 1e-6, so a clipped gradient is slightly shorter than clip_norm.
CLIP_EPSILON = 1e-6


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the number of updates already done.

  Counted from 1, update s of `warmup_steps` W has the share s / W of the full rate; from update W
  on (1 without warm-up) the rate is constant, or falls on a half cosine to `final_learning_rate` at
  the last update (docs/cart.md, section 6).

  Args:
    config: config.optimizer.
    steps: config.train.steps.
  """
  peak, final = config.learning_rate, config.final_learning_rate
  full = max(config.warmup_steps, 1)  # the first update at the full rate

  def schedule(count: ArrayLike):
    update = jnp.asarray(count, jnp.float32) + 1
    rate = jnp.asarray(peak, jnp.float32)
    if config.schedule == 'cosine':
      progress = jnp.clip((update - full) / max(steps - full, 1), 0.0, 1.0)
      rate = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(update < full, peak * update / full, rate)

  return schedule


def make_optimizer(config: ConfigDict, model: Model, steps: int) -> optax.GradientTransformation:
  """Returns clip -> OPTIMIZERS -> weight decay -> learning rate -> average, of config.optimizer.

  Args:
    config: config.optimizer.
    model: decides what decays (see decay_mask).
    steps: config.train.steps, the length of the cosine.
  """
  parts = [] if config.clip_norm == 0 else [clip_by_norm(config.clip_norm)]
  parts.append(OPTIMIZERS[config.name](config, model))
  if config.weight_decay and config.name != 'adam':  # times the learning rate, as in PyTorch
    mask = decay_mask(model, config.decay_mask)
    parts.append(optax.add_decayed_weights(config.weight_decay, mask))
  parts.append(optax.scale_by_learning_rate(make_schedule(config, steps)))
  if config.frozen:  # no moments, and no part in the norm that clips
    is_frozen = frozen_mask(model, config.frozen)
    parts = [optax.selective_transform(optax.chain(*parts), freeze_mask=is_frozen)]
  if config.ema_decay:
    parts.append(moving_average(config.ema_decay))
  return optax.chain(*parts)


def adam(config: ConfigDict, model: Model) -> optax.GradientTransformation:
  """Returns the update direction of Adam."""
  del model
  return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


def lion(config: ConfigDict, model: Model) -> optax.GradientTransformation:
  """Returns the update direction of Lion, the sign of a momentum (arXiv:2302.06675)."""
  del model
  return optax.scale_by_lion(b1=config.b1, b2=config.b2)


def muon(config: ConfigDict, model: Model) -> optax.GradientTransformation:
  """Returns the update of Muon for matrices and of Adam for everything else.

  Both have the size that suits AdamW's learning rate (arXiv:2502.16982, 2.2).
  """
  numbers = jax.tree_util.tree_map_with_path(
    lambda path, spec: (
      (path[0].key not in config.frozen and matrix_of(path, spec)) or optax.MaskedNode()
    ),
    model.axes(),
    is_leaf=sharding.is_spec,
  )
  is_matrix = jax.tree.map(_is_numbers, numbers, is_leaf=_is_numbers_or_none)

  def of_matrices(updates: Tree, state: optax.OptState, params: optax.Params | None = None):
    del params
    return jax.tree.map(_sized, numbers, updates, is_leaf=_is_numbers), state

  return optax.chain(
    optax.masked(
      optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=numbers),
        optax.GradientTransformation(optax.init_empty_state, of_matrices),
      ),
      is_matrix,
    ),
    optax.masked(adam(config, model), jax.tree.map(lambda is_muon: not is_muon, is_matrix)),
  )


def _is_numbers(x: object) -> bool:
  return isinstance(x, optax.contrib.MuonDimensionNumbers)


def _is_numbers_or_none(x: object) -> bool:
  return isinstance(x, optax.contrib.MuonDimensionNumbers | optax.MaskedNode)


def _sized(numbers: Any, update: Array) -> Array:
  """Returns an orthogonal update scaled to a root mean square of 0.2 per entry, as Adam's has."""
  sides = numbers.reduction_axis, numbers.output_axis
  longest = max(math.prod(update.shape[i] for i in side) for side in sides)
  return 0.2 * math.sqrt(longest) * update


# A new optimiser needs an entry here and in schema/training.py.
OPTIMIZERS = {'adamw': adam, 'adam': adam, 'lion': lion, 'muon': muon}
# Logical axes that stack separate matrices, those of tables, and those that form one side.
APART = ('layers', 'loops', 'qkv', 'keys_values', 'gate_up', 'history')
TABLES = ('vocab', 'positions', 'loop_code')
HEADS = ('heads', 'kv_heads', 'head_width')


def matrix_of(path: tuple, spec: PartitionSpec) -> optax.contrib.MuonDimensionNumbers | None:
  """Returns which dimensions of a parameter are the two sides of its matrices, else None.

  Parameters are [..., out, in]. Tables, the output layer, biases, norm scales and gates are no
  matrices between layers and give None.
  """
  sides = [i for i, name in enumerate(spec) if name not in APART]
  if is_vector(path, spec) or len(sides) < 2 or any(name in TABLES for name in spec):
    return None
  of_heads = [i for i in sides if spec[i] in HEADS]
  rest = [i for i in sides if i not in of_heads]
  if of_heads and rest:
    outputs, inputs = (rest, of_heads) if sides[-1] in of_heads else (of_heads, rest)
  else:  # the last two axes; heads with a matrix each are separate matrices
    outputs, inputs = sides[-2:-1], sides[-1:]
  return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales a gradient whose global norm exceeds max_norm by max_norm / (norm + 1e-6).

  The reference implementation does the same.
  """

  def update(updates: Tree, state: optax.OptState, params: optax.Params | None = None):
    del params
    scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + CLIP_EPSILON))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def decay_mask(model: Model, rule: str) -> Tree:
  """Returns a tree of booleans: which parameters weight decay applies to.

  `model.decayed()` excludes parameters that no loss reads (components that a variant leaves out),
  since an optimiser that skips missing gradients leaves them alone too. Of the rest 'all_but_gate'
  excludes a CART's gate, and 'matrices' everything that is no matrix: biases, norm scales, gate and
  blend.

  Raises:
    ValueError: 'all_but_gate' for a model without a gate.
  """
  axes = model.axes()
  used = model.decayed()
  if rule == 'all':
    return used
  if rule == 'all_but_gate':
    if 'gate' not in used:
      raise ValueError("optimizer.decay_mask='all_but_gate' needs a model with a gate; use 'all'")
    return used | {'gate': jax.tree.map(lambda _: False, used['gate'])}
  return jax.tree_util.tree_map_with_path(
    lambda path, spec, keep: keep and not is_vector(path, spec),
    axes,
    used,
    is_leaf=sharding.is_spec,
  )


def frozen_mask(model: Model, frozen: tuple[str, ...]) -> Tree:
  """Returns a tree of booleans: which parameters keep their initial values.

  Raises:
    ValueError: a name in optimizer.frozen is no part of the model.
  """
  axes = model.axes()
  for name in frozen:
    if name not in axes:
      raise ValueError(
        f'optimizer.frozen={tuple(frozen)}: {name!r} is no part of the model; it has '
        f'{", ".join(axes)}'
      )
  return {
    name: jax.tree.map(lambda _, is_frozen=name in frozen: is_frozen, axes[name]) for name in axes
  }


def is_vector(path: tuple, spec: PartitionSpec) -> bool:
  """Returns whether a parameter is no matrix, by its dimensions or its name.

  It has one dimension, or is named as a bias or a norm scale, which layers and heads stack.
  """
  name = str(getattr(path[-1], 'key', path[-1]))
  return len(spec) <= 1 or name.endswith(('bias', 'scale'))
