"""JSON as the standard has it, which knows no NaN and no Infinity: null stands for them."""

import json
import math
from typing import Any


def dumps(value: Any, **options) -> str:
  """Returns the JSON of a value, with null for every number that is not finite.

  Args:
    options: of json.dumps.
  """
  return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _finite(member) for name, member in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(member) for member in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
