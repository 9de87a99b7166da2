"""Where every random number begins."""

import jax


def random_key(seed: int | jax.Array) -> jax.Array:
  """The key of a seed: the same whatever JAX_DEFAULT_PRNG_IMPL says, whose other choices draw
  differently for a row with other neighbours."""
  return jax.random.key(seed, impl='threefry2x32')
