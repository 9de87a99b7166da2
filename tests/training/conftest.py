"""What tests of whole runs share."""

import pytest


@pytest.fixture(scope='module')
def caches(tmp_path_factory):
  """The runs of a file read the same tokens: once is enough."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CRT_JAX_CACHE', str(tmp_path_factory.mktemp('tokens')))
    yield
