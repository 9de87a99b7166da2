"""Division of whole numbers, rounded up."""


def ceil_div(value: int, by: int) -> int:
  """Returns the smallest whole number that is at least value / by."""
  return -(-value // by)


def round_up(value: int, multiple: int) -> int:
  """Returns the smallest multiple of `multiple` that is at least `value`."""
  return ceil_div(value, multiple) * multiple
