"""One run and many, with small programs in the place of training: kept tracebacks, retries, the
bound on parallel runs, signals, what a Slurm job does with itself, and the collected results."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from crt_jax import json_text
from crt_jax.cli.user_errors import Mistake
from crt_jax.cluster.launcher import wait_until
from experiments.jobs import attempts, local, results, slurm, status
from experiments.jobs.attempts import FAILED, FINISHED, PREEMPTED, Launch

COUNT = """
import pathlib, sys
tried = pathlib.Path({file!r})
tried.write_text(str(int(tried.read_text() or 0) + 1) if tried.exists() else '1')
n = int(tried.read_text())
"""


def launch(folder, script, retries=2, name='run'):
  return Launch.of(name, folder, [sys.executable, '-c', script], retries)


def counting(folder, script, **options):
  """A launch whose script knows as n how often it was started."""
  return launch(folder, COUNT.format(file=str(folder / 'tried')) + script, **options)


@pytest.fixture
def quiet_pool():
  said = []
  yield lambda parallel=1: local.Pool(parallel, say=said.append)


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_each_attempt_keeps_its_output_and_a_failed_one_its_traceback(
  tmp_path, monkeypatch, unbuffered
):
  monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
  run = counting(tmp_path, "print('loss 3'); n == 2 or 1 / 0")
  assert [attempts.attempt(run), attempts.attempt(run)] == [FAILED, FINISHED]
  state = attempts.read(tmp_path)
  assert state['state'] == FINISHED and state['attempts'] == 2
  [failure] = state['failures']
  assert failure['exit_code'] == 1 and 'ZeroDivisionError' in failure['error']
  assert failure['traceback'].startswith('Traceback')
  assert 'ZeroDivisionError' in (tmp_path / 'attempts/1.log').read_text()
  assert (tmp_path / 'attempts/2.log').read_text() == 'loss 3\n'


@pytest.mark.parametrize(
  'script, outcome, error',
  [
    ('raise SystemExit(75)', PREEMPTED, ''),
    ('import os; os.kill(os.getpid(), 15)', PREEMPTED, ''),
    ('import os; os.kill(os.getpid(), 9)', FAILED, 'killed by SIGKILL after: no output'),
    ("import sys; print('error: model.width=3'); sys.exit(2)", FAILED, 'error: model.width=3'),
  ],
)
def test_what_an_exit_means(tmp_path, script, outcome, error):
  assert attempts.attempt(launch(tmp_path, script)) == outcome
  failures = attempts.read(tmp_path)['failures']
  assert not failures if not error else error in failures[0]['error']


def test_a_run_fails_only_so_often_and_a_new_command_may_try_again(tmp_path, quiet_pool):
  run = counting(tmp_path, 'raise SystemExit(1)', retries=1)
  assert quiet_pool().run([run]) == {'run': FAILED}
  assert attempts.read(tmp_path)['attempts'] == 2
  again = counting(tmp_path, 'raise SystemExit(n < 4)', retries=1)
  assert quiet_pool().run([again]) == {'run': FINISHED}
  assert attempts.read(tmp_path)['attempts'] == 4


def test_a_mistake_is_not_tried_again_and_preemption_does_not_count(tmp_path, quiet_pool):
  mistaken = launch(tmp_path / 'a', 'raise SystemExit(2)', name='a')
  (tmp_path / 'b').mkdir()
  preempted = counting(tmp_path / 'b', 'raise SystemExit(75 if n < 5 else 0)', name='b', retries=0)
  assert quiet_pool().run([mistaken, preempted]) == {'a': FAILED, 'b': FINISHED}
  assert attempts.read(tmp_path / 'a')['attempts'] == 1
  assert attempts.read(tmp_path / 'b')['attempts'] == 5


def test_at_most_so_many_run_at_a_time_and_take_turns_at_the_gpus(tmp_path):
  script = """
import os, pathlib, time
mine = pathlib.Path({folder!r}) / f'now_{{os.getpid()}}'
mine.touch()
time.sleep(0.3)
print(len(list(mine.parent.glob('now_*'))), os.environ['CUDA_VISIBLE_DEVICES'])
mine.unlink()
"""
  runs = [
    launch(tmp_path / str(i), script.format(folder=str(tmp_path)), name=str(i)) for i in range(5)
  ]
  pool = local.Pool(2, gpus=('4', '7'), say=lambda line: None)
  assert set(pool.run(runs).values()) == {FINISHED}
  said = [(tmp_path / str(i) / 'attempts/1.log').read_text().split() for i in range(5)]
  assert max(int(running) for running, _ in said) == 2
  assert {gpu for _, gpu in said} == {'4', '7'}


def test_sigterm_lets_running_runs_save_and_starts_no_other(tmp_path):
  script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print('ready', flush=True)
time.sleep(60)
"""
  runs = [launch(tmp_path / name, script, name=name) for name in ('a', 'b')]

  def stop_when_ready():
    while not (tmp_path / 'a/attempts/1.log').exists() or not (
      (tmp_path / 'a/attempts/1.log').read_text()
    ):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop_when_ready).start()
  pool = local.Pool(1, say=lambda line: None)
  assert pool.run(runs) == {'a': PREEMPTED, 'b': PREEMPTED}
  assert pool.stopped_by == signal.SIGTERM
  assert attempts.read(tmp_path / 'a')['state'] == PREEMPTED
  assert not (tmp_path / 'b').exists()


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
  """squeue says what is in the file `state`; scontrol writes down what it is asked."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, text in (
    ('squeue', f'cat {tmp_path}/state'),
    ('scontrol', f'echo "$@" >> {tmp_path}/asked'),
  ):
    (folder / name).write_text(f'#!/bin/sh\n{text}\n')
    (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('SLURM_ARRAY_JOB_ID', '12')
  monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '3')
  (tmp_path / 'state').write_text('RUNNING\n')
  numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
  before = {number: signal.getsignal(number) for number in numbers}
  yield lambda: (tmp_path / 'asked').read_text() if (tmp_path / 'asked').exists() else ''
  for number, handler in before.items():
    signal.signal(number, handler)


def test_a_preempted_job_requeues_itself(tmp_path, fake_slurm):
  with pytest.raises(SystemExit) as end:
    slurm.Job(launch(tmp_path / 'run', 'raise SystemExit(75)'))()
  assert end.value.code == 75 and fake_slurm() == 'requeue 12_3\n'
  assert attempts.read(tmp_path / 'run')['job'] == '12_3'


def test_a_cancelled_job_does_not_come_back(tmp_path, fake_slurm):
  (tmp_path / 'state').write_text('COMPLETING\n')
  with pytest.raises(SystemExit):
    slurm.Job(launch(tmp_path / 'run', 'raise SystemExit(75)'))()
  assert fake_slurm() == ''


def test_a_failing_job_is_requeued_so_often_and_then_fails(tmp_path, fake_slurm):
  job = slurm.Job(launch(tmp_path / 'run', '1 / 0', retries=1))
  with pytest.raises(SystemExit):
    job()
  with pytest.raises(RuntimeError, match='run: exit code 1: ZeroDivisionError'):
    job()
  assert fake_slurm() == 'requeue 12_3\n'


def test_only_the_first_process_of_a_run_decides(tmp_path, fake_slurm, monkeypatch):
  monkeypatch.setenv('SLURM_PROCID', '1')
  assert slurm.Job(launch(tmp_path / 'run', "print('one'); raise SystemExit(75)"))() == PREEMPTED
  assert fake_slurm() == '' and not (tmp_path / 'run/attempts/state.json').exists()
  assert (tmp_path / 'run/attempts/process_1.log').read_text() == 'one\n'


@pytest.mark.parametrize(
  'error, known', [('slurm_load_jobs error: Invalid job id specified', True), ('Timeout', False)]
)
def test_a_queue_that_does_not_answer_is_no_empty_queue(tmp_path, fake_slurm, error, known):
  json_text.write(tmp_path / slurm.JOBS, {'run': '12_3'})
  (tmp_path / 'state').write_text('12_3 PENDING\n12_4 RUNNING\n')
  assert slurm.queued(tmp_path) == {'run': ('12_3', 'PENDING')}
  (tmp_path / 'bin/squeue').write_text(f'#!/bin/sh\necho "squeue:\n{error}" >&2; exit 1\n')
  if known:
    assert slurm.queued(tmp_path) == {}
  else:
    with pytest.raises(Mistake, match='which jobs it still has .Timeout.'):
      slurm.queued(tmp_path)


def test_submitit_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
  for name in ('sbatch', 'srun'):
    (tmp_path / name).write_text('#!/bin/sh\n')
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(Mistake, match=r"needs submitit: .* -m pip install -e '.*\[cluster\]'"):
    slurm.require()


def run_folder(folder, steps=4):
  """What a finished run leaves behind, as far as a sweep looks at it."""
  folder.mkdir(parents=True)
  origin = {'command': 'python -m experiments.main', 'commit': 'abc', 'device': 'a CPU'}
  origin |= {'versions': {'jax': '0.10.2'}, 'devices': 1, 'at': 'today', 'python': '3.11.7'}
  config = {'model': {'width': 16, 'name': 'crt'}, 'train': {'steps': steps}, 'mesh': {}}
  json_text.write(folder / 'config.json', {'config': config, 'origin': origin})
  rows = [{'step': n, 'loss': 5.0 - n, 'tokens_per_second': 100.0} for n in range(1, steps + 1)]
  rows[-1] |= {'validation_perplexity_tiny': 6.037, 'validation_perplexity_wiki': 97.73}
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text + '{"step": 5, "lo')
  row = {'set': 'tiny', 'protocol': 'first', 'form': 'parallel', 'depth': 3, 'perplexity': 6.1}
  evaluation = {'step': steps, 'results': {'sampled': [row]}, 'origin': origin}
  json_text.write(folder / 'evaluation.json', evaluation)
  json_text.write(folder / 'finished.json', {'step': steps, 'training_seconds': 12.5})


def test_results_of_all_runs_are_in_one_file(tmp_path):
  run_folder(tmp_path / 'good')
  attempts.attempt(launch(tmp_path / 'bad', '1 / 0'))
  for _ in range(2):  # made anew each time
    found = status.standings(tmp_path, {'good': 4, 'bad': 4, 'later': 4}, {})
    file = results.collect(tmp_path, found)
  database = sqlite3.connect(file)
  rows = database.execute('select run, state, device, training_seconds from runs').fetchall()
  assert rows == [
    ('good', FINISHED, 'a CPU', 12.5),
    ('bad', FAILED, None, None),
    ('later', status.WAITING, None, None),
  ]
  [(traceback,)] = database.execute("select traceback from runs where run = 'bad'")
  assert traceback.startswith('Traceback') and 'ZeroDivisionError' in traceback
  query = """
    select e.perplexity, json_extract(c.config, '$."model.width"') from evaluations e
    join configs c using (run) where e.validation_set = 'tiny' and e.depth = 3"""
  assert database.execute(query).fetchall() == [(6.1, 16)]
  losses = database.execute("select step, value from metrics where name = 'loss'").fetchall()
  assert losses == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_the_table_says_where_each_run_stands(tmp_path, capsys):
  run_folder(tmp_path / 'good')
  attempts.attempt(launch(tmp_path / 'bad', '1 / 0'))
  found = status.standings(tmp_path, {'good': 4, 'bad': 4, 'later': 4}, {})
  status.show('a sweep', found, tmp_path)
  text = capsys.readouterr().out
  assert 'tiny 6.037  wiki 97.73' in text and '4/4' in text and '1 (1 failed)' in text
  assert f'bad: exit code 1: ZeroDivisionError: division by zero ({tmp_path}/bad/attempts)' in text
  assert text.endswith('1 of 3 finished, 1 failed, 1 waiting\n')


def test_a_run_that_was_killed_with_its_sweep_is_seen_as_stopped(tmp_path):
  (tmp_path / 'run/attempts').mkdir(parents=True)
  state = {'state': 'running', 'attempts': 1, 'job': '', 'host': os.uname().nodename}
  with subprocess.Popen([sys.executable, '-c', 'input()', f'{tmp_path}/run'], stdin=-1) as process:
    json_text.write(tmp_path / 'run/attempts/state.json', state | {'pid': process.pid})
    seen = lambda: status.state_of(tmp_path / 'run', 'running', None)  # noqa: E731
    wait_until(lambda: seen() == 'running', 10)  # the system names a process after it has begun
    assert seen() == 'running'
    process.kill()
  assert status.state_of(tmp_path / 'run', 'running', None) == 'stopped'
  assert status.state_of(tmp_path / 'run', 'running', ('7_1', 'PENDING')) == 'queued'
