"""Every run that a sweep lists: it can be built, checked and placed on 8 devices, and one of each
structure lowers there."""

import ast
import functools
import json
import pathlib

import jax
import pytest

import configs.sweeps
import crt_jax
from crt_jax import evaluation, sharding
from crt_jax.cli import config_files
from crt_jax.training import startup
from experiments import sweep_files
from tests.configs.test_configs import SPECS, lower

FOLDER = pathlib.Path(configs.sweeps.__file__).parent
SIZES = {
  'cart_stage1': 64,
  'cart_stage1:cpu': 8,
  'cart_stage2': 36,
  'cart_stage2:reference': 39,
  'cart_stage2:cpu': 6,
  'cart_parity': 6,
  'cart_parity:cpu': 3,
  'cart_ablations': 8,
  'cart_ablations:follow_ups': 16,
  'cart_ablations:cpu': 8,
  'crt_cross_width': 10,
  'crt_cross_width:budget=341': 10,
  'crt_cross_width:cpu': 6,
  'crt_width_scaling': 15,
  'crt_width_scaling:cpu': 8,
  'crt_block_size': 11,
  'crt_block_size:cpu': 6,
  'crt_k': 7,
  'crt_k:cpu': 6,
}
# What leaves the operations of a train step as they are: lengths of scans, sizes of arrays (every
# run's arrays are placed below) and factors. Of runs that differ in these alone one is lowered, if
# tests/configs/test_configs.py does not lower such a config anyway.
INDIFFERENT = {
  *('layers', 'prelude_layers', 'loops', 'depth', 'depth_min', 'vocab_size', 'width', 'heads'),
  *('gate_init', 'convergence_weight', 'dropout'),
}
KEY = jax.eval_shape(lambda: jax.random.key(0))
SCANS = dict(transformer=('layers',), crt=('layers', 'depth'), cart=('prelude_layers', 'loops'))
MESH = sharding.make_abstract_mesh(data=2, fsdp=4)


def spec_of(sweep: str) -> str:
  name, colon, arguments = sweep.partition(':')
  return f'{FOLDER / name}.py{colon}{arguments}'


def configs_of(sweep: str) -> dict:
  return {run.name: sweep_files.config_of(run, {}) for run in sweep_files.load(spec_of(sweep))}


def structure_of(config) -> tuple:
  """What decides the operations of a train step."""
  model = {k: v for k, v in config.model.items() if k not in INDIFFERENT}
  switched = (config.model.dropout > 0, config.model.get('convergence_weight', 0) > 0)
  return (*sorted(model.items()), *switched, config.train.accumulation > 1)


def representatives() -> dict[str, object]:
  """Returns one config of each structure that is not lowered elsewhere, by its sweep and run."""
  elsewhere = {structure_of(config_files.load(spec)) for spec in SPECS}
  found = {}
  for sweep in SIZES:
    for name, config in configs_of(sweep).items():
      if structure_of(config) not in elsewhere:
        found.setdefault(structure_of(config), (f'{sweep}-{name}', config))
  return dict(found.values())


def test_every_sweep_is_here():
  files = {path.stem for path in FOLDER.glob('*.py')} - {'__init__'}
  assert files == {name.partition(':')[0] for name in SIZES}
  assert {f'{file}:cpu' for file in files} <= SIZES.keys()


@functools.cache
def placed(model_json: str):
  """Places the arrays of a model, each once: the runs of a grid share most of them."""
  model = crt_jax.build(json.loads(model_json))
  return sharding.param_shardings(model.axes(), jax.eval_shape(model.init, KEY), MESH)


@pytest.mark.parametrize('sweep', SIZES)
def test_every_run_is_a_config_that_can_be_placed(sweep):
  found = configs_of(sweep)
  assert len(found) == SIZES[sweep]
  for name, config in found.items():
    model = crt_jax.build(config.model)
    if config.data.corpus == 'files':
      config.data.files = '*.txt'  # the user's own text need not be here
    startup.check_config(config)
    evaluation.forms(evaluation.scoring_model(model, config), config)
    # How long a scan is decides nothing about where one of its arrays lies.
    own = SCANS[config.model.name]
    short = {name: min(config.model[name], 2) for name in own}
    short |= {'depth_min': 0} if 'depth' in own else {}
    model_json = json.dumps({**config.model, **short}, sort_keys=True)
    specs = jax.tree.leaves(placed(model_json))
    assert any('fsdp' in str(one.spec) for one in specs), name


@pytest.mark.parametrize('sweep', SIZES)
def test_no_two_runs_are_the_same(sweep):
  plain = [config.to_json_best_effort() for config in configs_of(sweep).values()]
  assert len(set(plain)) == len(plain)


REPRESENTATIVES = representatives()


@pytest.mark.parametrize('name', REPRESENTATIVES)
def test_one_run_of_each_new_structure_lowers(name):
  config = REPRESENTATIVES[name]
  with config.unlocked():
    config.data.batch_size = 8 * config.train.accumulation
  lowered = lower(config, MESH)
  assert '"fsdp"=4' in lowered.as_text(), 'nothing is split'


@pytest.mark.parametrize('file', sorted({name.partition(':')[0] for name in SIZES}))
def test_docstring_says_the_commands_and_the_expectation(file):
  text = ast.get_docstring(ast.parse((FOLDER / f'{file}.py').read_text()))
  command = f'python -m experiments.sweep --config=configs/sweeps/{file}.py'
  assert command in text and f'{command}:cpu' in text
  assert 'published' in text.lower() and '`:cpu` is' in text


def test_the_cpu_sizes_are_small():
  for sweep in SIZES:
    if sweep.endswith(':cpu'):
      for config in configs_of(sweep).values():
        tokens = config.train.steps * config.data.batch_size * config.data.sequence_length
        assert tokens <= 700_000 and config.model.width <= 200, sweep


def test_a_full_grid_has_the_published_arguments():
  first, *_, last = sweep_files.load(spec_of('cart_stage2'))
  assert first.config == 'configs/cart_d256.py:R=6,P=6,seed=42,stage=2'
  assert last.name == 'd1024_R10_P6_s271'
  assert config_files.load(last.config).train.steps == 30_500
