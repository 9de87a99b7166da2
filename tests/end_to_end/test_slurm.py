"""Sweeps and multi-process runs under a real Slurm of one node, which the test starts and stops.

  make test-slurm

A job array with a bound on parallel jobs, of which one job is told to save and one is killed in the
middle; and deploy/slurm_nodes.sbatch with two tasks, preempted once.
"""

import json
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from experiments.jobs import attempts
from tests.conftest import QUICK_COMPILER
from tests.end_to_end import runs, slurm_cluster
from tests.end_to_end.slurm_cluster import call, wait_for
from tests.training.tiny import rows_of

ROOT = runs.ROOT
PATIENCE = 900  # seconds; minutes on an idle machine
PACE = '0.1'  # seconds that a step takes at least
# A quick compiler, as in tests/conftest.py.
FLAGS = {'XLA_FLAGS': QUICK_COMPILER}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]

SWEEP = """
from configs.base import Run

def get_sweep(arguments=''):
  changes = {
    'train.steps': 150, 'train.checkpoint_every': 10, 'train.log_every': 5,
    'train.eval_every': 50, 'model.depth_min': 0,
  }
  return [
    Run('told', 'tests/training/tiny.py', changes),
    Run('killed', 'tests/training/tiny.py', changes),
    Run('left_alone', 'tests/training/tiny.py', changes),
  ]
"""
NEXT = "    Run('next', 'tests/training/tiny.py', changes | {'train.steps': 5}, after='told'),\n  ]"


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
  """The environment of a user on a login node."""
  environment = runs.environment(tmp_path_factory.mktemp('tokens'))
  site = tmp_path_factory.mktemp('site')  # steps take a while, so that they can be interrupted
  (site / 'sitecustomize.py').write_text('import tests.end_to_end.other_host\n')
  environment |= {'PYTHONPATH': f'{site}{os.pathsep}{ROOT}', 'OTHER_PACE': PACE}
  with slurm_cluster.cluster() as cluster:
    wanted = ('PATH', 'SLURM_CONF')
    yield environment | {name: cluster[name] for name in wanted} | FLAGS


def sweep(slurm, *words, code=0):
  """Runs experiments.sweep and returns what it said."""
  command = [sys.executable, '-m', 'experiments.sweep', *words]
  result = subprocess.run(
    command, cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=PATIENCE
  )
  assert result.returncode == code, result.stdout + result.stderr
  return result.stdout


def reached(folder, step):
  """Whether a run has logged a step."""
  file = folder / 'metrics.jsonl'
  lines = file.read_text().splitlines() if file.exists() else []
  return bool(lines) and json.loads(lines[-1])['step'] >= step


def queue(slurm):
  """Job -> its state."""
  said = call(['squeue', '--noheader', '--array', '--format=%i %T'], slurm)
  return dict(line.split() for line in said.splitlines())


def start_now(slurm, job):
  """Waits until a job is back in the queue and spares it Slurm's two minutes of waiting there, but
  for three seconds: in the second in which it was taken off a node, the node refuses it ("Job
  credential revoked"), and it is gone."""
  wait_for(lambda: queue(slurm).get(job) in ('PENDING', None), seconds=PATIENCE)
  assert job in queue(slurm), f'job {job} has ended before it was told to stop'
  assert call(['scontrol', 'update', f'jobid={job}', 'starttime=now+3'], slurm) == ''


def test_a_sweep_as_a_job_array(slurm, tmp_path):
  pytest.importorskip('submitit', reason="no submitit here: pip install 'crt_jax[cluster]'")
  file, workdir = tmp_path / 'sweep.py', tmp_path / 'all'
  file.write_text(SWEEP.replace('  ]', NEXT))
  words = (f'--config={file}', f'--workdir={workdir}', '--executor=slurm')
  words += ('--parallel=2', '--retries=1', '--minutes=30', '--slurm=cpus-per-task=1,partition=test')
  said = sweep(slurm, *words)
  assert 'submitted 3 jobs, at most 2 at a time\n' in said
  assert 'submitted 1 jobs, at most 2 at a time, when told has finished' in said
  jobs = json.loads((workdir / 'jobs.json').read_text())
  waiting = jobs.pop('next')
  array = jobs['told'].partition('_')[0]
  assert jobs == {'told': f'{array}_0', 'killed': f'{array}_1', 'left_alone': f'{array}_2'}
  told, killed = workdir / 'told', workdir / 'killed'
  wait_for(lambda: reached(told, 20) and reached(killed, 20), seconds=PATIENCE)
  assert list(queue(slurm).values()).count('RUNNING') == 2

  call(['scancel', '--signal=TERM', jobs['told']], slurm)  # as before the end of its time
  os.kill(attempts.read(killed)['pid'], signal.SIGKILL)
  # The same command while all is under way submits nothing.
  said = sweep(slurm, *words)
  assert said.count('left alone') == 4 and 'submitted' not in said
  for name in ('told', 'killed'):
    start_now(slurm, jobs[name])
  assert queue(slurm)[waiting] == 'PENDING'
  wait_for(lambda: not queue(slurm), seconds=PATIENCE)

  said = sweep(slurm, '--status', f'--workdir={workdir}')
  assert '4 of 4 finished' in said, said
  begun = json.loads((workdir / 'next/begins_with.json').read_text())
  assert begun == {'workdir': str(told), 'step': 150}
  states = {name: attempts.read(workdir / name) for name in jobs}
  assert [states[name]['attempts'] for name in ('told', 'killed', 'left_alone')] == [2, 2, 1]
  [failure] = states['killed']['failures']
  assert failure['error'].startswith('exit code -9: killed by SIGKILL')
  assert not states['told']['failures']
  for name in ('told', 'killed'):
    text = (workdir / name / 'attempts/2.log').read_text()
    assert int(re.search(r'continuing after step (\d+)', text)[1]) >= 10

  # All three are the same run, so the interrupted ones end where the other one does.
  database = sqlite3.connect(workdir / 'results.sqlite')
  query = "select run, value from metrics where name = 'loss' and step = 150"
  losses = dict(database.execute(query).fetchall())
  assert len(losses) == 3 and len(set(losses.values())) == 1
  query = 'select count(*), count(distinct versions), min(devices) from runs where state = ?'
  assert database.execute(query, ('finished',)).fetchone() == (4, 1, 1)
  query = "select run from config where field = 'train.steps' and value = '150'"
  assert len(database.execute(query).fetchall()) == 3
  assert database.execute('select count(*) from evaluations').fetchone()[0] >= 3
  # And again: nothing is left to do.
  assert 'submitted' not in sweep(slurm, *words)


def test_the_batch_script_for_several_processes(slurm, tmp_path):
  """Two processes share a batch; SIGTERM saves both at one step, the script requeues itself."""
  sizes = ('--config.train.steps=150', '--config.train.checkpoint_every=10')
  sizes += ('--config.train.log_every=1', '--config.train.eval_every=150')
  sizes += ('--config.model.depth_min=0',)
  script = (ROOT / 'deploy/slurm_nodes.sbatch').read_text()
  command = re.search(r'-m experiments.main .*', script)[0]
  flags = f'--distributed=on --config.mesh.fsdp=2 --workdir={tmp_path / "two"} {" ".join(sizes)}'
  ours = f'-m experiments.main --config=tests/training/tiny.py {flags}'
  script = script.replace(command, ours).replace('.venv/bin/python', sys.executable)
  # This node has no GPU and few cores; everything else is as in the file.
  script = re.sub(r'(?m)^#SBATCH --(nodes|ntasks|gpus|cpus|mem|time|output).*\n', '', script)
  here = f'#SBATCH --ntasks=2 --cpus-per-task=1 --time=30 --output={tmp_path}/log\n'
  script = script.replace('#SBATCH', here + '#SBATCH', 1)
  (tmp_path / 'job.sh').write_text(script)
  job = call(['sbatch', '--parsable', str(tmp_path / 'job.sh')], slurm).strip()
  assert job.isdigit(), job
  wait_for(lambda: reached(tmp_path / 'two', 3), tmp_path, PATIENCE)
  call(['scancel', '--signal=TERM', job], slurm)
  start_now(slurm, job)
  wait_for(lambda: not queue(slurm), seconds=PATIENCE)
  log = (tmp_path / 'log').read_text()
  assert 'saved at step' in log and 'continuing after step' in log, log
  assert (tmp_path / 'two/finished.json').exists(), log
  cache = pathlib.Path(slurm['CRT_JAX_CACHE'])
  code, out = runs.finish(tmp_path / 'one', cache, sizes=sizes, extra=FLAGS)
  assert code == 0, out
  one, two = (rows_of(tmp_path / name) for name in ('one', 'two'))
  assert [row['step'] for row in two] == [row['step'] for row in one]
  np.testing.assert_allclose([r['loss'] for r in two], [r['loss'] for r in one], rtol=1e-5)


def test_a_sweep_whose_runs_have_two_processes(slurm, tmp_path):
  pytest.importorskip('submitit', reason="no submitit here: pip install 'crt_jax[cluster]'")
  file, workdir = tmp_path / 'sweep.py', tmp_path / 'all'
  file.write_text(SWEEP.replace("'train.steps': 150", "'train.steps': 6, 'mesh.fsdp': 2"))
  words = (f'--config={file}', f'--workdir={workdir}', '--executor=slurm')
  sweep(slurm, *words, '--slurm=ntasks-per-node=2,cpus-per-task=1')
  wait_for(lambda: not queue(slurm), seconds=PATIENCE)
  said = sweep(slurm, '--status', f'--workdir={workdir}')
  assert '3 of 3 finished' in said, said
  database = sqlite3.connect(workdir / 'results.sqlite')
  assert set(database.execute('select devices, attempts from runs').fetchall()) == {(2, 1)}
  assert (workdir / 'told/attempts/process_1.log').exists()
