"""What a sweep may list, and what its command line refuses in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import Run
from crt_jax import json_text
from crt_jax.cli import config_files
from crt_jax.cli.user_errors import Mistake
from experiments import sweep as sweep_program
from experiments import sweep_files
from experiments.jobs import plan

ROOT = Path(__file__).parents[2]
SWEEP = """
from configs.base import Run

def get_sweep(arguments=''):
  return {runs}
"""
TINY = str(ROOT / 'tests/training/tiny.py')


def sweep(folder, runs, name='sweep.py'):
  """Writes a sweep file and returns its path."""
  (folder / name).write_text(SWEEP.format(runs=runs))
  return str(folder / name)


@pytest.mark.parametrize(
  'runs, words',
  [
    ('[]', ['lists no run']),
    ('None', ['list of configs.base.Run']),
    ("[('a', 'b')]", ['list of configs.base.Run']),
    ("[Run('a', 'x.py'), Run('b', 'x.py'), Run('a', 'y.py')]", ["2 runs of the name 'a'"]),
    ("[Run('a', 'x.py', {}, 'b'), Run('b', 'x.py')]", ["run a is to begin after 'b'"]),
    ("[Run('../a', 'x.py')]", ['no name of a folder']),
    ("[Run('slurm', 'x.py')]", ['no name of a folder']),
    ('undefined', ['sweep.py:5', 'NameError']),
  ],
)
def test_a_wrong_listing_is_told_in_one_line(tmp_path, runs, words):
  with pytest.raises(Mistake) as error:
    sweep_files.load(sweep(tmp_path, runs))
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words), error.value


def test_configs_and_sweeps_point_to_each_other(tmp_path):
  with pytest.raises(Mistake, match='no function get_sweep.*it is for python -m experiments.main'):
    sweep_files.load('configs/quickstart.py')
  with pytest.raises(Mistake, match='get_config.*it is for python -m experiments.sweep'):
    config_files.load(sweep(tmp_path, '[]'))


def test_a_run_has_its_file_s_config_its_changes_and_what_the_command_line_sets():
  run = Run('a', TINY, {'train.steps': 7, 'optimizer.learning_rate': 1})
  config = sweep_files.config_of(run, {'train.steps': 8, 'eval.depths': (1, 2)})
  assert (config.train.steps, config.optimizer.learning_rate) == (8, 1.0)
  assert sweep_files.flags(run, {'train.steps': 8, 'eval.whole': True, 'eval.depths': ()}) == [
    f'--config={TINY}',
    '--config.train.steps=8',
    '--config.optimizer.learning_rate=1',
    '--config.eval.whole=true',
    '--config.eval.depths=()',
  ]


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'train.step': 7}, ['run a', 'train.step=7', 'did you mean train.steps?']),
    ({'train.steps': 'many'}, ['run a', "train.steps='many'", 'whole number']),
    ({'eval.depths': 3}, ['run a', 'a tuple']),
  ],
)
def test_a_wrong_change_names_the_run_and_the_field(changes, words):
  with pytest.raises(Mistake) as error:
    sweep_files.config_of(Run('a', TINY, changes), {})
  assert all(word in str(error.value) for word in words), error.value


def test_a_directory_holds_one_sweep_which_may_grow(tmp_path):
  runs = [Run('a', TINY), Run('b', TINY, {'seed': 2})]
  listed = plan.listing('sweep.py', runs[:1], {})
  assert plan.merged(tmp_path / 'new', listed) == listed
  plan.json_text.write(tmp_path / plan.LISTING, listed)
  grown = plan.merged(tmp_path, plan.listing('sweep.py:more', runs, {}))
  assert list(grown['runs']) == ['a', 'b'] and grown['runs']['b']['steps'] == 12
  with pytest.raises(Mistake, match='run a with other settings.*seed=3'):
    plan.merged(tmp_path, plan.listing('sweep.py', runs, {'seed': 3}))
  with pytest.raises(Mistake, match='another sweep, sweep.py'):
    plan.merged(tmp_path, plan.listing('other.py', runs, {}))


def test_a_foreign_directory_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('mine')
  with pytest.raises(Mistake, match='holds something else .thesis.tex. and no sweep.json'):
    plan.merged(tmp_path, plan.listing('sweep.py', [Run('a', TINY)], {}))


def test_a_mistake_in_one_run_is_found_before_any_starts(tmp_path):
  runs = [Run('a', TINY), Run('wide', TINY, {'model.width': 15})]
  with pytest.raises(Mistake, match=r'^run wide .*model.width=15 must be divisible'):
    plan.check(runs, {}, tmp_path)
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'thesis.tex').write_text('mine')
  with pytest.raises(Mistake, match=r'^run a .*holds something else'):
    plan.check(runs, {}, tmp_path)


def test_only_some_runs():
  runs = dict.fromkeys(['a-s1', 'a-s2', 'b-s1', 'b-s2'], {})
  assert sweep_program.chosen(runs, ['*']) == runs
  assert list(sweep_program.chosen(runs, ['*-s1', 'b-s?'])) == ['a-s1', 'b-s1', 'b-s2']


def test_the_table_shows_what_was_asked_for(tmp_path, capsys):
  listing = plan.listing('sweep.py', [Run(name, TINY) for name in ('one', 'two')], {})
  json_text.write(tmp_path / plan.LISTING, listing)
  shown = sweep_program.show(tmp_path, {'two': {}})
  said = capsys.readouterr().out
  assert [one.name for one in shown] == ['two'] and '0 of 1 finished, 1 waiting' in said
  assert ' one ' not in said and '--status shows all 2 runs' in said
  sweep_program.show(tmp_path, listing['runs'])
  said = capsys.readouterr().out
  assert ' one ' in said and '0 of 2 finished, 2 waiting' in said and '--status' not in said


@pytest.mark.parametrize(
  'words, said',
  [
    (['--executor=cloud'], 'local|slurm'),
    (['--parallel=0'], 'parallel'),
    (['--slurm=partition=gpu'], '--slurm is for --executor=slurm'),
    (['--executor=slurm'], 'there is no sbatch here'),
    (['--executor=slurm', '--slurm=partition'], 'expected options of sbatch'),
    (['--executor=slurm', '--slurm=time=60'], 'use --minutes'),
    (['--status'], 'holds no sweep'),
    (['--only=a,b*'], '--only=b* fits no run; there are a, ...'),
    (['--config.train.step=5'], 'did you mean --config.train.steps?'),
  ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, words, said):
  file = sweep(tmp_path, f"[Run('a', {TINY!r})]")
  empty = tmp_path / 'bin'
  empty.mkdir()
  result = subprocess.run(
    [sys.executable, '-m', 'experiments.sweep', f'--config={file}', *words],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'PATH': str(empty)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert result.returncode == 2, result
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
  assert said in result.stderr
  assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_a_run_begins_with_another_when_that_has_finished(tmp_path):
  steps = {'train.steps': 2, 'train.eval_every': 2, 'train.checkpoint_every': 2}
  file = sweep(
    tmp_path,
    f"""[
      Run('first', {TINY!r} + ':transformer', {steps}),
      Run('second', {TINY!r}, {steps | {'model.depth_min': 0}}, after='first'),
    ]""",
  )

  def start(*words):
    return subprocess.run(
      [sys.executable, '-m', 'experiments.sweep', f'--config={file}', '--workdir=runs', *words],
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'CRT_JAX_CACHE': str(tmp_path / 'cache')},
      capture_output=True,
      text=True,
      timeout=300,
    )

  result = start('--only=second')
  assert result.returncode == 1, result
  assert 'second begins with first; when that has finished, the same command' in result.stdout
  result = start()
  assert result.returncode == 0, result
  assert start('--only=second').returncode == 0
  begun = json.loads((tmp_path / 'runs' / 'second' / 'begins_with.json').read_text())
  assert begun == {'workdir': str(tmp_path / 'runs' / 'first'), 'step': 2}
