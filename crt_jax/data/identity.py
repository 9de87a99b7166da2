"""Checks that data is still the data that something was made from."""

from collections.abc import Mapping
from typing import Any


def check_identity(of: str, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
  """Raises ValueError if the identity of data differs from a saved one.

  Args:
    of: the run or file that was made from the saved one.
    saved: `dataset.identity` of then; what an older version did not save is not compared.
    identity: `dataset.identity` of now.

  Raises:
    ValueError: they differ; one line that names the first difference.
  """
  for name, before in saved.items():
    now = identity.get(name, 'none')
    if before != now:
      raise ValueError(
        f'{of}: the {name} is not the one this run began with (was {before}, now {now}); '
        'restore it or use a new --workdir'
      )
