"""How a model configuration selects its scans, and the names of the recurrent passes."""

from collections.abc import Callable
from typing import NamedTuple

from crt_jax.models import kernel_choice
from crt_jax.recurrence.scan import Remat, scan_of
from crt_jax.schema import ModelConfig

# model.remat -> rematerialisation policy of each recurrent pass, and of each layer inside it.
REMAT: dict[str, tuple[Remat, Remat]] = {
  'none': (False, False),
  'pass': (True, False),
  'layer': (True, True),
  'dots': (kernel_choice.keep_products, kernel_choice.keep_products),
}


def pass_scan(config: ModelConfig) -> Callable:
  """Returns the scan function for recurrent passes and loops."""
  return scan_of(REMAT[config.remat][0], config.unroll_scans == 'yes')


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
