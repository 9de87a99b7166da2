"""Whatever stands in a field of a config: it is taken and means something, or refused in one line
that names it, before anything is compiled."""

import functools
import math
import random
import re
import signal
import subprocess

import jax
import pytest
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.training import startup, step
from tests.end_to_end import runs
from tests.training.tiny import tiny_config

MUTATIONS, SECONDS = 500, 20  # seconds: none may hang
MODELS = ('crt', 'cart', 'transformer')
# Values of every kind: a field takes those of its own within its range, and no other.
VALUES = (
  *(None, True, False, 'many', '', (), (1,), ('gate',), (1.5,), ('',), {}, {'a': {}}, b'\x00'),
  *(0, 1, -1, 2, 3, 5, 7, 10, 64, 300, 2**16, 2**32, 2**64, 10**400, 1j),
  *(0.0, 1.0, 0.5, -0.5, 1.5, 1e12, 1e300, 5e-324, math.nan, math.inf, -math.inf),
)


def a_config(name: str) -> ConfigDict:
  """A run of a kind of model with every field of its schema."""
  if name == 'cart':
    model = schema.cart_model(width=16, prelude_layers=2, loops=2, head_width=8)
  else:
    make = schema.crt_model if name == 'crt' else schema.transformer_model
    model = make(layers=1, width=16, heads=2, rotary='integer')
  config = schema.experiment(model)
  tiny = tiny_config().copy_and_resolve_references()
  for section in ('data', 'optimizer', 'train', 'eval', 'mesh', 'sample'):
    config[section].update(tiny[section])
  return config


def plain_change(config: ConfigDict, name: str, value) -> ConfigDict:
  """The config with a value as a file could set it, whatever the type of the field."""
  fields = {**config.copy_and_resolve_references().to_dict()}
  at = fields
  *sections, last = name.split('.')
  for section in sections:
    at = at[section]
  at[last] = value
  return ConfigDict(fields, convert_dict=True).lock()


def mutations():
  """`MUTATIONS` of (model, dotted field, value), each field of each model at least once."""
  draw = random.Random(0)
  leaves = [
    (model, name)
    for model in MODELS
    for name in schema.flat(a_config(model).copy_and_resolve_references())
    if name != 'model.name'
  ]
  chosen = leaves + draw.choices(leaves, k=MUTATIONS - len(leaves))
  for model, name in chosen:
    values = [*VALUES, *schema.meaning(name, model).choices]
    yield model, name, draw.choice(values)


def lowered(config, path) -> None:
  """What a run does before it compiles, and the trace of its step."""
  plan = startup.check(config, str(path), fork=False, reset_optimizer=False)
  startup.open_data(plan)
  traced = plan.steps.make((plan.model.depths() or (None,))[0], False)
  jax.eval_shape(traced, plan.steps.abstract, step.abstract_batch(config, plan.mesh))


@pytest.fixture
def hang():
  """Fails a test that takes longer than SECONDS at a time."""

  def late(*_):
    raise TimeoutError(f'longer than {SECONDS} s')

  before = signal.signal(signal.SIGALRM, late)
  yield functools.partial(signal.alarm, SECONDS)
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_every_leaf_takes_what_makes_sense_and_refuses_the_rest(tmp_path, monkeypatch, hang):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'tokens'))
  wrong, taken, refused = [], 0, 0
  for model, name, value in mutations():
    config = plain_change(a_config(model), name, value)
    hang()
    try:
      lowered(config, tmp_path / 'run')
      taken += 1
      if isinstance(value, bytes | complex) or (value != value or value in (math.inf, -math.inf)):
        wrong.append(f'{model}: {name}={value!r:.40} is taken')
    except ValueError as error:
      refused += 1
      line = str(error)
      if '\n' in line or name.rpartition('.')[2] not in line:
        wrong.append(f'{model}: {name}={value!r:.40}: {line}')
    except Exception as error:  # noqa: BLE001 - every other kind is a fault
      wrong.append(f'{model}: {name}={value!r:.40}: {type(error).__name__}: {error!s:.200}')
  assert not (tmp_path / 'run').exists()
  assert not wrong, '\n'.join(wrong)
  assert taken > MUTATIONS / 20 and refused > MUTATIONS / 2


@pytest.mark.parametrize('model', MODELS)
def test_no_leaf_takes_a_value_of_another_type_or_one_that_is_not_finite(model):
  config = a_config(model)
  of_no_field = (None, b'\x00', 1j, math.nan, math.inf, -math.inf, 2**200, -(2**200))
  for name, value in schema.flat(config.copy_and_resolve_references()).items():
    other = 'many' if not isinstance(value, str) else 7
    for bad in (*of_no_field, other, {'a': 1} if value != {} else 'a'):
      with pytest.raises(ValueError) as error:
        startup.check_config(plain_change(config, name, bad))
      assert name in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
  'change',
  (
    'config.train.steps = None',
    "config.train = 'long'",
    "config.eval.batches = float('nan')",
    'config.optimizer.warmup_steps = 1.5',
    "config.mesh = {'data': 'all'}",
    'config.sample.prompt = 3',
    'del config.optimizer',
    "config.limits = {'steps': 3}",
    'config.model.width = 2**32',
  ),
)
def test_a_mistake_in_a_file_is_one_line_and_code_2(tmp_path, change):
  file = tmp_path / 'mistake.py'
  file.write_text(
    'from ml_collections import ConfigDict\n'
    'from tests.training.tiny import tiny_config\n'
    'def get_config():\n'
    '  config = ConfigDict(tiny_config().copy_and_resolve_references().to_dict(), '
    'type_safe=False)\n'
    f'  {change}\n'
    '  return config\n'
  )
  command = runs.command(tmp_path / 'run', config=str(file), sizes=())
  done = subprocess.run(
    command, cwd=runs.ROOT, env=runs.environment(tmp_path), capture_output=True, text=True
  )
  assert done.returncode == 2, done.stderr
  [line] = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and re.search(r'config\.(\w+)', change)[1] in line
  assert not (tmp_path / 'run').exists()
