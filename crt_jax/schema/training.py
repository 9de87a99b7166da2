"""`config.optimizer`, `config.train`, `config.mesh`: how and where parameters are updated."""

import dataclasses
import re
from typing import ClassVar

from crt_jax.schema.fields import LARGEST, Section, field, require

HIGHEST = 1e38  # about the largest float32
OFTEN = dict(least=1, most=LARGEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
  """How a gradient becomes an update (training/optimizer.py)."""

  section: ClassVar[str] = 'optimizer'

  name: str = field(
    'adamw',
    'kind of optimiser',
    choices={
      'adamw': '',
      'adam': 'without weight decay',
      'lion': 'needs a third to a tenth of the learning rate',
      'muon': 'matrices between layers; adamw for all else',
    },
  )
  learning_rate: float = field(2e-4, 'highest learning rate', above=0, most=HIGHEST)
  schedule: str = field(
    'constant',
    'learning rate after the warm-up',
    choices={'constant': '', 'cosine': 'to final_learning_rate at the last step'},
  )
  warmup_steps: int = field(
    0, 'steps of a linear warm-up; the last has the full rate', least=0, most=LARGEST
  )
  final_learning_rate: float = field(
    0.0, 'learning rate at the last step, of schedule=cosine', least=0, most=HIGHEST
  )
  b1: float = field(0.9, 'decay of the first moment', least=0, below=1)
  b2: float = field(0.999, 'decay of the second moment', least=0, below=1)
  eps: float = field(1e-8, 'added to the root of the second moment', above=0, most=1)
  weight_decay: float = field(
    0.01, 'decoupled, multiplied by the learning rate; not for adam', least=0, most=HIGHEST
  )
  decay_mask: str = field(
    'all',
    'which parameters decay',
    choices={'all': '', 'all_but_gate': 'of a CART', 'matrices': 'no biases, norms, gate, blend'},
  )
  frozen: tuple[str, ...] = field(
    (), "parts of the model that are not trained and get no gradient, such as ('gate',)"
  )
  clip_norm: float = field(
    1.0, 'largest norm of the global gradient', least=0, most=HIGHEST, zero='off'
  )
  ema_decay: float = field(
    0.0,
    'decay of a moving average of the parameters, which is then scored and loaded',
    least=0,
    below=1,
    zero='none',
  )

  def check(self) -> None:
    require(
      self.name != 'adam' or not self.weight_decay,
      "optimizer.weight_decay has no effect with optimizer.name='adam'; use 'adamw' or 0",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
  """How long a run trains, and what it writes meanwhile."""

  section: ClassVar[str] = 'train'

  steps: int = field(1000, 'updates of the parameters', **OFTEN)
  init_from: str = field(
    '', 'work directory of a trained model to start from (a CRT also takes a transformer)'
  )
  keep_layers: tuple[int, ...] = field(
    (), 'layers of init_from to keep, ascending from 0, such as (0,1,5); () = all', least=0
  )
  accumulation: int = field(
    1, 'slices of the batch per update; divides data.batch_size', least=1, most=2**20
  )
  log_every: int = field(10, 'steps between lines of the log', **OFTEN)
  eval_every: int = field(200, 'steps between measurements on the validation set', **OFTEN)
  checkpoint_every: int = field(200, 'steps between checkpoints', **OFTEN)
  keep_checkpoints: int = field(
    2, 'number of newest checkpoints to keep, besides the best one', **OFTEN
  )
  telemetry_every: int = field(
    0, 'steps between expensive statistics', least=0, most=LARGEST, zero='never'
  )
  profile: str = field('', "first and last step to profile, such as '100-105'")
  stall_seconds: float = field(
    600.0,
    'seconds of one step after which each process prints where it waits',
    least=0,
    most=HIGHEST,
    zero='never',
  )

  def check(self) -> None:
    kept = self.keep_layers
    require(
      list(kept) == sorted(set(kept)) and (self.init_from != '' or not kept),
      f'train.keep_layers={kept} must be rising numbers of layers of train.init_from',
    )
    first, last = self.profiled
    require(
      not self.profile or 1 <= first <= last <= self.steps,
      f'train.profile={self.profile!r} must be a first and a last step of '
      f"train.steps={self.steps}, as '100-105'",
    )

  @property
  def profiled(self) -> tuple[int, int]:
    """First and last step of `profile`; (0, 0) for '' or a text of another form."""
    steps = re.fullmatch(r'(\d+)-(\d+)', self.profile)
    return (int(steps[1]), int(steps[2])) if steps else (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
  """How devices share parameters and rows (sharding.py)."""

  section: ClassVar[str] = 'mesh'

  data: int = field(-1, 'replicas of the parameters; -1 = all devices left', least=-1, most=2**20)
  fsdp: int = field(
    1, 'devices over which parameters, moments and rows are split', least=-1, most=2**20
  )
  tensor: int = field(
    1, 'devices over which heads and hidden units are split', least=-1, most=2**20
  )
  gather: str = field(
    'step',
    'when weights that are split over fsdp are gathered',
    choices={
      'step': 'all once per step: less communication',
      'layer': 'layer by layer: less memory',
    },
  )
  across: str = field(
    'any',
    'the axis that crosses the slow network, between slices of a TPU or nodes of GPUs',
    choices={'any': 'data, then fsdp, then tensor', 'data': '', 'fsdp': '', 'tensor': ''},
  )

  def check(self) -> None:
    sizes = {'data': self.data, 'fsdp': self.fsdp, 'tensor': self.tensor}
    for axis, size in sizes.items():
      require(size, f'mesh.{axis}=0 must be at least 1, or -1 for all devices that are left')
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
      raise ValueError(f'mesh.{free[1]}=-1: only one mesh axis may be -1; set mesh.{free[1]}=1')
