"""Names of the types that signatures share."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array
AnyArray = jax.Array | np.ndarray  # on the host where its values are known there
Params = dict[str, Any]  # nested, with an array at each leaf
Tree = Any  # a pytree of arrays
Batch = Mapping[str, AnyArray]  # 'tokens' and 'targets', [B, T]
# What attention reads of earlier positions: a cache, position_B, and where the cache does not begin
# at position 0 the position in its first slot.
Past = tuple[Any, jax.Array, *tuple[jax.Array, ...]]
