"""Every config, found by glob: it is complete, documented, says the sizes it names, and its train
step lowers on 8 devices."""

import ast
import dataclasses
import pathlib
import re

import jax
import pytest

import crt_jax
from configs import base
from crt_jax import accounting, schema, sharding
from crt_jax.cli import config_files
from crt_jax.cli.user_errors import Mistake
from crt_jax.runs import train_state
from crt_jax.training import optimizer as optimizer_lib
from crt_jax.training import startup, step
from experiments.study import figures, variants

CONFIGS = pathlib.Path(base.__file__).parent
STUDIES = sorted((CONFIGS / 'studies').glob('*.py'))
HELPERS = [CONFIGS / f'{name}.py' for name in ('__init__', 'base', 'cart_base', 'cart_grid')]
# Read by tests of their own: tests/experiments/latency and tests/experiments/bptt_study.
SWEEPS = (CONFIGS / 'sweeps').glob('*.py')  # test_sweeps.py
OTHERS = {*HELPERS, *STUDIES, *SWEEPS, *CONFIGS.glob('latency*.py'), CONFIGS / 'bptt_study.py'}
FILES = sorted(path for path in CONFIGS.rglob('*.py') if path not in OTHERS)


def specs():
  """FILE and FILE:ARGUMENTS for every line of the ARGUMENTS that a config offers."""
  for file in FILES:
    arguments = getattr(config_files._execute(file), 'ARGUMENTS', ('',))
    for given in arguments:
      yield f'{file}:{given}' if given else str(file)


SPECS = list(specs())
name_of = lambda spec: config_files.name(spec)  # noqa: E731


@pytest.fixture(params=SPECS, ids=name_of)
def config(request):
  return config_files.load(request.param)


def test_the_issue_s_experiments_are_there():
  names = {config_files.name(spec) for spec in SPECS}
  assert {
    f'crt_d{d}_c{c}' for d, c in ((1, 2048), (3, 1408), (5, 1120), (6, 1024), (11, 768))
  } <= names
  assert {'transformer_n2', 'transformer_n4', 'transformer_n6', 'transformer_n12'} <= names
  assert {
    'transformer_n12-heads=16',
    'crt_d1_t1024',
    'crt_d1_t1024-k_min=2',
    'transformer_n6_t1024',
  } <= names
  assert {f'crt_341m-D={d}' for d in (1, 3, 5, 6, 11)} <= names
  assert {f'transformer_341m-N={n}' for n in (2, 4, 6, 12, 24)} <= names
  assert {'quickstart', 'crt_sotu', 'cart_cpu'} <= names
  assert {f'cart_d{d}' for d in (256, 512, 768, 1024)} <= names
  assert {f'dense_{layers}l_d1024' for layers in (7, 12, 17)} <= names


def test_config_has_every_field_and_no_other(config):
  complete = schema.experiment(config.model.to_dict())
  assert {name for name in flat(config) if not name.startswith('data.sources.')} == flat(complete)
  for source in config.data.sources.values():
    assert {field.name for field in dataclasses.fields(schema.SourceConfig)} == set(source)
  model = crt_jax.build(config.model)
  assert {field.name for field in dataclasses.fields(model.config)} == set(config.model)
  # The user's own text and vocabulary need not be here.
  if config.data.corpus == 'files':
    config.data.files = '*.txt'
  if config.data.tokenizer.endswith('.json'):
    config.data.tokenizer = 'bytes'
  startup.check_config(config)


def flat(config, prefix=''):
  return {
    name
    for key in config
    for name in (
      flat(config[key], f'{prefix}{key}.') if hasattr(config[key], 'keys') else {prefix + key}
    )
  }


def test_every_cart_measures_its_recurrence(config):
  if config.model.name == 'cart':
    assert config.train.telemetry_every == 50 and config.eval.jacobian_iterations == 40


def test_a_transformer_has_no_jacobian():
  config = config_files.load(str(CONFIGS / 'dense_7l_d1024.py'))
  config.eval.jacobian_iterations = 3
  with pytest.raises(ValueError, match='eval.jacobian_iterations=3: a transformer has no'):
    startup.check_config(config)


def test_vocabulary_follows_the_data(config):
  with config.unlocked():
    config.data.vocab_size = 1234
  assert config.model.vocab_size == 1234


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_docstring_says_the_command_and_the_expectation(file):
  text = ast.get_docstring(ast.parse(file.read_text()))
  assert f'python -m experiments.main --config=configs/{file.relative_to(CONFIGS)}' in text
  assert not re.search(r'python -m .*[^\\]\n +--', text), 'a command that goes on needs a backslash'
  assert re.search(r'published|measured|reached', text.lower()), 'say which number it should reach'
  sizes = re.findall(r'C=(\d+): ([\d.]+) M parameters', text)
  if sizes:
    [(width, millions)] = sizes
    config = config_files.load(str(file))
    assert config.model.width == int(width)
    assert f'{accounting.parameters(config.model).stored / 1e6:.1f}' == millions


@pytest.mark.parametrize('spec', SPECS, ids=name_of)
def test_train_step_lowers_on_eight_devices(spec):
  """No hardware and no compiling: every sharding rule, shape and depth is exercised by lowering
  alone."""
  config = config_files.load(spec)
  mesh = sharding.make_abstract_mesh(data=2, fsdp=4)
  with config.unlocked():
    config.data.batch_size = 8 * config.train.accumulation
  lowered = lower(config, mesh)
  assert '"fsdp"=4' in lowered.as_text(), 'nothing is split'


def lower(config, mesh):
  model = crt_jax.build(config.model)
  steps = step.steps_of(config, model, mesh)
  jitted = steps.make((model.depths() or (None,))[-1])
  return jitted.trace(steps.abstract, step.abstract_batch(config, mesh)).lower(
    lowering_platforms=('tpu',)
  )


def test_tensor_axis_lowers_where_heads_divide():
  config = config_files.load(str(CONFIGS / 'crt_d5_c1120.py'))
  lowered = lower(config, sharding.make_abstract_mesh(data=2, fsdp=2, tensor=2))
  assert '"tensor"=2' in lowered.as_text()
  one_head = config_files.load(str(CONFIGS / 'transformer_n12.py'))
  with pytest.raises(ValueError, match=r'heads, 1\) is not divisible by mesh.tensor=2'):
    lower(one_head, sharding.make_abstract_mesh(data=2, fsdp=2, tensor=2))


def test_state_of_every_config_fits_in_shards(config):
  """FSDP over 4: parameters and moments take a quarter each, up to what has no dimension to
  split."""
  mesh = sharding.make_abstract_mesh(fsdp=4)
  model = crt_jax.build(config.model)
  tx = optimizer_lib.make_optimizer(config.optimizer, model, config.train.steps)
  abstract = train_state.abstract_state(model, tx, mesh)
  whole = split = 0
  for x in jax.tree.leaves(abstract.params):
    whole += x.size
    split += x.sharding.shard_shape(x.shape)[0] * x.size // x.shape[0] if x.ndim == 1 else 0
    if x.ndim > 1:
      size = 1
      for n in x.sharding.shard_shape(x.shape):
        size *= n
      split += size
  assert split < 0.27 * whole


@pytest.mark.parametrize('file', STUDIES, ids=lambda file: file.name)
def test_every_variant_of_a_study_is_a_config_that_lowers(file):
  config = config_files.load(str(file))
  text = ast.get_docstring(ast.parse(file.read_text()))
  assert f'python -m experiments.study --config=configs/studies/{file.name}' in text
  assert config.study.figure in figures.FIGURES
  mesh = sharding.make_abstract_mesh(data=1)
  for name in config.study.variants:
    variant = variants.variant_config(config, name)
    startup.check_config(variant)
    lower(variant, mesh)


@pytest.mark.parametrize(
  'spec',
  ['cart_d1024.py:size=cp', 'cart_d1024.py:stage=3', 'crt_341m.py:D=4', 'both_cpu.py:which=x'],
)
def test_a_wrong_choice_names_the_argument_and_the_choices(spec):
  with pytest.raises(Mistake) as error:
    config_files.load(f'configs/{spec}')
  line, name = str(error.value), spec.partition(':')[2].partition('=')[0]
  assert line.startswith(f'--config=configs/{spec}: {name}=') and ' must be ' in line
