"""Whether arrays agree to the digits that float arithmetic leaves free."""

import jax
import numpy as np

# Errors are measured against the largest value: an element is a sum of terms as large as that, and
# what they were rounded by stays in it however small it comes out. Which terms are added first, and
# whether a product is rounded before it is added, is the processor's choice.
#
# The models of the tests make at most 60 products after each other, of at most 64 terms. Roundings
# of half an eps (2^-24) each add up, as random ones do, to sqrt(64) * 2^-24 a product, and in the
# worst case to 60 * 5e-7 = 3e-5 behind the last; norms and softmax may enlarge that threefold.
FLOAT32 = 1e-4
# The same with 2^-53 is 2e-13. Weights here are so large that errors grow from pass to pass.
FLOAT64 = 1e-10
# One product behind the other, of up to 118 terms of size 1 to 5: sqrt(118) * 5 * 2^-24 = 3e-6.
FEW_PRODUCTS = 1e-5


def gap(found, expected) -> float:
  """The largest difference of two trees of arrays, in units of the largest value of the second."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
  for a, b in pairs:
    assert np.shape(a) == np.shape(b)
  wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
  difference = np.max([np.abs(a - b).max(initial=0) for a, b in wide])
  return difference / np.max([np.abs(b).max(initial=0) for _, b in wide]) if difference else 0.0


def assert_close(found, expected, tolerance: float, what='') -> None:
  """Fails where two trees of arrays differ by more than `tolerance` of the largest value."""
  off = gap(found, expected)
  assert off <= tolerance, f'{what} off by {off:.2g} of the largest value; allowed: {tolerance:.2g}'
