"""What tests of whole runs share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope='module')
def caches(tmp_path_factory):
  """The runs of a file compile the same few programs and read the same tokens: once is enough."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CRT_JAX_CACHE', str(tmp_path_factory.mktemp('tokens')))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', str(tmp_path_factory.mktemp('programs')))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    compilation_cache.reset_cache()
    yield
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()
