"""Which scans are written out."""

import jax
import jax.numpy as jnp
import pytest

from crt_jax.recurrence.scan import MOST_WRITTEN_OUT, scan_of


@pytest.mark.parametrize('remat', [False, True, jax.checkpoint_policies.dots_saveable])
@pytest.mark.parametrize('steps', [2, 3, MOST_WRITTEN_OUT, MOST_WRITTEN_OUT + 1])
def test_many_steps_stay_a_scan(remat, steps):
  def total(x, unroll):
    return scan_of(remat, unroll)(lambda c, y: (jnp.sin(c * y), c), x, jnp.arange(steps) + 1.0)[0]

  text = jax.jit(total, static_argnums=1).lower(1.0, True).as_text()
  assert ('while' in text) == (steps > MOST_WRITTEN_OUT)
  values = [jax.value_and_grad(total)(0.5, unroll) for unroll in (False, True)]
  assert jnp.allclose(jnp.array(values[0]), jnp.array(values[1]), rtol=1e-6)
