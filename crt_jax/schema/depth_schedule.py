"""Which recurrent depth training uses at which step: fixed, drawn from a range, or a curriculum."""

import bisect
import dataclasses
import re

import numpy as np

from crt_jax.schema.fields import require

MOST_DEPTHS = 256  # each is compiled before the first step


@dataclasses.dataclass(frozen=True)
class DepthSchedule:
  """Ranges of depth and the steps from which they hold.

  Attributes:
    starts: first steps, ascending, the first one 0.
    ranges: (low, high) of each; the depth is drawn uniformly from low..high, both included.
  """

  starts: tuple[int, ...]
  ranges: tuple[tuple[int, int], ...]

  def __post_init__(self) -> None:
    drawn = sum(high - low + 1 for low, high in self.ranges)
    require(
      drawn <= MOST_DEPTHS,
      f'training would draw {drawn} different depths, each compiled before step 1; narrow '
      f'model.depth_min, depth_schedule or loops_min to {MOST_DEPTHS}',
    )

  @classmethod
  def parse(cls, depth: int, depth_min: int, text: str) -> 'DepthSchedule':
    """Returns the schedule of depth, depth_min and depth_schedule (crt.md 3, K curriculum).

    Args:
      text: '' or entries 'step:K' and 'step:low-high', comma-separated, steps ascending; before the
        first entry depth and depth_min hold.
    Raises: ValueError that names the entry.
    """
    starts, ranges = [0], [(depth_min or depth, depth)]
    for entry in filter(None, (part.strip() for part in text.split(','))):
      match = re.fullmatch(r'(\d+):(\d+)(?:-(\d+))?', entry)
      if not match:
        raise ValueError(
          f"model.depth_schedule entry {entry!r} must read 'step:K' or 'step:low-high'"
        )
      start, low, high = int(match[1]), int(match[2]), int(match[3] or match[2])
      if not 1 <= low <= high:
        raise ValueError(f'model.depth_schedule entry {entry!r} must have 1 <= low <= high')
      if start < starts[-1] or (start == starts[-1] and start > 0):
        raise ValueError(f'model.depth_schedule entry {entry!r} must start after step {starts[-1]}')
      if start == 0:
        starts, ranges = [], []
      starts.append(start)
      ranges.append((low, high))
    return cls(tuple(starts), tuple(ranges))

  def depths(self) -> tuple[int, ...]:
    """Returns all depths that can occur, ascending."""
    return tuple(sorted({d for low, high in self.ranges for d in range(low, high + 1)}))

  def draw(self, seed: int, step: int) -> int:
    """Returns the depth of `step`, a pure function of (seed, step) on every process."""
    low, high = self.ranges[bisect.bisect_right(self.starts, step) - 1]
    if low == high:
      return low
    return int(np.random.default_rng([seed, step]).integers(low, high + 1))
