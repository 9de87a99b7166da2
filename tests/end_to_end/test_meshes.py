"""Meshes that lie across processes: the losses, parameters and evaluation of one process with one
device, whatever rows a process holds."""

import json

import numpy as np
import pytest

from tests.end_to_end import runs
from tests.end_to_end.test_processes import (  # noqa: F401
  QUICK,
  _nothing_is_left_behind,
  cache,
  finish,
  start,
)
from tests.training.tiny import params_of, rows_of

pytestmark = pytest.mark.slow
SIZES = (
  '--config.model.depth_min=0',  # one program to compile
  '--config.train.steps=4',
  '--config.train.checkpoint_every=4',
  '--config.train.eval_every=4',
  '--config.train.log_every=1',
  '--config.eval.whole=True',
  # Adam makes a whole step of a gradient that is nothing but rounding, as that of a key's bias
  # where no angle turns it; so it does not here.
  '--config.optimizer.eps=1e-3',
)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):  # noqa: F811
  path = tmp_path_factory.mktemp('runs') / 'alone'
  code, out = runs.finish(path, cache, '--distributed=off', sizes=SIZES, extra=QUICK)
  assert code == 0, out
  return path


def assert_same_evaluation(path, expected):
  found, wanted = (json.loads((p / 'evaluation.json').read_text()) for p in (path, expected))
  for kind in ('sampled', 'whole'):
    for a, b in zip(found['results'][kind], wanted['results'][kind], strict=True):
      assert (a['form'], a['targets']) == (b['form'], b['targets'])
      np.testing.assert_allclose(a['cross_entropy'], b['cross_entropy'], rtol=1e-6)


@pytest.mark.parametrize(
  ('processes', 'devices', 'mesh'),
  [
    (2, 1, dict(tensor=2)),  # both hold all rows
    pytest.param(  # two by two hold the same
      *(4, 1, dict(fsdp=2, tensor=2)), marks=pytest.mark.exhaustive
    ),
    (2, 2, dict(data=2, tensor=2)),
  ],
)
def test_processes_train_and_evaluate_as_one(tmp_path, cache, alone, processes, devices, mesh):  # noqa: F811
  sizes = (*SIZES, *(f'--config.mesh.{axis}={size}' for axis, size in mesh.items()))
  some = {rank: {'JAX_NUM_CPU_DEVICES': str(devices)} for rank in range(processes)}
  codes, outs = finish(start(processes, tmp_path, cache, sizes, some))
  assert codes == [0] * processes, outs
  one, several = rows_of(alone), rows_of(tmp_path)
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(
      [row[name] for row in several], [row[name] for row in one], rtol=1e-5
    )
  np.testing.assert_allclose(
    several[-1]['validation_cross_entropy'], one[-1]['validation_cross_entropy'], rtol=1e-6
  )
  expected = params_of(alone)
  for name, found in params_of(tmp_path).items():
    atol = 1e-5 * np.abs(expected[name]).max()
    np.testing.assert_allclose(found, expected[name], rtol=0, atol=atol, err_msg=name)
  assert_same_evaluation(tmp_path, alone)
  if processes * devices > 2:
    return
  (tmp_path / 'evaluation.json').unlink()
  codes, outs = finish(start(processes, tmp_path, cache, ('--mode=eval',), some, config=None))
  assert codes == [0] * processes, outs
  assert_same_evaluation(tmp_path, alone)
