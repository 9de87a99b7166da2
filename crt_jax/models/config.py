"""What a model makes of its configuration: how its scans run, what its passes are called."""

from collections.abc import Callable
from typing import NamedTuple

from crt_jax.models import kernel_choice
from crt_jax.recurrence.scan import Remat, scan_of
from crt_jax.schema import ModelConfig

# What the backward pass recomputes: of each recurrent pass, and of each layer inside it.
REMAT: dict[str, tuple[Remat, Remat]] = {
  'none': (False, False),
  'pass': (True, False),
  'layer': (True, True),
  'dots': (kernel_choice.keep_products, kernel_choice.keep_products),
}


def pass_scan(config: ModelConfig) -> Callable:
  """What runs recurrent passes and loops."""
  return scan_of(REMAT[config.remat][0], config.unroll_scans == 'yes')


def layer_scan(config: ModelConfig) -> Callable:
  """What runs layers, inside a pass or without any."""
  return scan_of(REMAT[config.remat][1], config.unroll_scans == 'yes')


class RecurrentPasses(NamedTuple):
  """What the recurrent passes of a model are called.

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
    """Of an axis that counts them."""
    return f'{self.name} {self.letter}'
