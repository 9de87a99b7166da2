"""The root of every random number."""

import jax


def random_key(seed: int | jax.Array) -> jax.Array:
  """Returns the key of a seed, by the same generator whatever JAX_DEFAULT_PRNG_IMPL says.

  Other generators draw differently for a row if its neighbours change.
  """
  return jax.random.key(seed, impl='threefry2x32')
