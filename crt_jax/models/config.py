"""How a model configuration selects its scans, and the names of the recurrent passes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend

from crt_jax.layers import attention_kernels
from crt_jax.recurrence.scan import Remat, scan_of
from crt_jax.schema import ModelConfig

_KEPT = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(attention_kernels.FUSED_ATTENTION),
)


def _keep_products(primitive: jax.extend.core.Primitive, *args: Any, **params: Any) -> bool:
  """Decides, for remat 'dots', what the backward pass reads instead of computing it anew.

  It keeps products of activations with weights and what a fused attention kernel returns; norms,
  activations, rotary angles and materialised attention are computed anew.
  """
  return primitive.name == attention_kernels.CUDNN_ATTENTION or _KEPT(primitive, *args, **params)


# model.remat -> rematerialisation policy of each recurrent pass, and of each layer inside it.
REMAT: dict[str, tuple[Remat, Remat]] = {
  'none': (False, False),
  'pass': (True, False),
  'layer': (True, True),
  'dots': (_keep_products, _keep_products),
}


def pass_scan(config: ModelConfig, unroll: bool = False) -> Callable:
  """Returns the scan function for recurrent passes and loops; `unroll` writes them out anyway."""
  return scan_of(REMAT[config.remat][0], unroll or config.unroll_scans == 'yes')


def layer_scan(config: ModelConfig) -> Callable:
  """Returns the scan function for the layers of one pass."""
  return scan_of(REMAT[config.remat][1], config.unroll_scans == 'yes')


class RecurrentPasses(NamedTuple):
  """Names of a model's recurrent passes.

  Attributes:
    field: of the configuration, that says how many.
    letter: of that number.
    name: of the passes, in the plural.
  """

  field: str
  letter: str
  name: str

  @property
  def label(self) -> str:
    """The label of a figure's axis that counts the passes."""
    return f'{self.name} {self.letter}'
