"""Runs of a sweep on a Slurm cluster: job arrays, of which some jobs run at a time.

submitit writes and submits the array; each job starts one run and afterwards decides about itself:
a preempted or failed job is requeued, so that another node can take it. No process stays behind to
watch.
"""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from types import ModuleType

from crt_jax import json_text
from crt_jax.cli.user_errors import Mistake
from crt_jax.program import install
from experiments.jobs import attempts
from experiments.jobs.attempts import FINISHED, PREEMPTED, Launch

JOBS = 'jobs.json'  # run -> job
SECONDS_TO_SAVE = 120  # between the warning and the end of a job's time


class Job:
  """What each task of an array job calls."""

  def __init__(self, launch: Launch):
    self.launch = launch

  def __call__(self) -> str:
    # Slurm signals the run's own process too, as one of the same step; here it is only waited for.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
      signal.signal(number, lambda *_: None)
    index, job = int(os.environ.get('SLURM_PROCID', 0)), name_of_this_job()
    state = attempts.attempt(self.launch, job=job, process_index=index)
    if index or state == FINISHED:
      return state
    if state == PREEMPTED or attempts.may_retry(self.launch):
      requeue(job)
      raise SystemExit(attempts.SAVED)
    failure = attempts.read(self.launch.folder)['failures'][-1]
    raise RuntimeError(f'{self.launch.name}: {failure["error"]}')


def name_of_this_job() -> str:
  """Returns the job's id, ARRAY_INDEX in an array."""
  array = os.environ.get('SLURM_ARRAY_JOB_ID')
  return f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}' if array else os.environ['SLURM_JOB_ID']


def requeue(job: str) -> None:
  """Requeues this job, unless it was cancelled or Slurm itself requeues it."""
  for pause in (1, 5, 30, 60, 0):  # a controller may be busy, or restarting
    found = call('squeue', '--noheader', '--format=%T', f'--jobs={job}')
    state = found.stdout.strip()
    result = call('scontrol', 'requeue', job) if state == 'RUNNING' else found
    if result.returncode == 0:
      break
    print(f'job {job}: {result.stderr.strip()}', flush=True)
    time.sleep(pause)
  said = 'requeued' if state == 'RUNNING' else f'{state or "gone"}, so not requeued from here'
  print(f'job {job}: {said}', flush=True)


def submit(
  launches: list[Launch],
  workdir: pathlib.Path,
  name: str,
  parallel: int,
  minutes: int,
  options: dict[str, str],
  setup: str,
) -> dict[str, str]:
  """Submits one job per run and returns their ids by name of the run.

  Args:
    parallel: jobs at a time.
    minutes: of one job; a run that needs more is saved before the end and requeued.
    options: of sbatch, as {'partition': 'gpu', 'gpus-per-node': '1'}.
    setup: a line of shell that each job starts with; '' for none.

  Raises:
    Mistake: submitit or Slurm is missing, or sbatch refuses the jobs.
  """
  submitit = require()
  fixed = {'requeue': True, 'signal': f'TERM@{SECONDS_TO_SAVE}', 'time': minutes}
  shape = {
    key: int(options[long])
    for key, long in (('nodes', 'nodes'), ('ntasks_per_node', 'ntasks-per-node'))
    if long in options
  }
  # Since Slurm 22.05 srun does not take this over from sbatch: each task would have one CPU.
  cpus = [f'--cpus-per-task={options["cpus-per-task"]}'] if 'cpus-per-task' in options else []
  executor = submitit.SlurmExecutor(folder=workdir / 'slurm')
  try:
    executor.update_parameters(
      job_name=name,
      array_parallelism=parallel,
      additional_parameters=fixed | options,
      setup=[setup] if setup else None,
      srun_args=cpus,
      **shape,
    )
    jobs = executor.submit_array([Job(launch) for launch in launches])
  except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
    line = ' '.join(str(error).split())
    raise Mistake(f'sbatch refused the jobs: {line}') from None
  ids = {launch.name: job.job_id for launch, job in zip(launches, jobs, strict=True)}
  json_text.write(workdir / JOBS, json_text.read(workdir / JOBS, {}) | ids)
  return ids


def after(job: str) -> dict[str, str]:
  """Returns the options of sbatch for jobs that wait for a job to end well, and else are dropped.

  A job that is requeued has not ended yet.
  """
  return {'dependency': f'afterok:{job}', 'kill-on-invalid-dep': 'yes'}


def require() -> ModuleType:
  """Returns submitit. Raises Mistake that says what to install if it or Slurm is missing."""
  if shutil.which('sbatch') is None or shutil.which('srun') is None:
    raise Mistake(
      '--executor=slurm: there is no sbatch here; start it on a login node of the cluster, or use '
      '--executor=local'
    )
  try:
    import submitit
  except ImportError:
    raise Mistake(f'--executor=slurm needs submitit: {install("cluster")}') from None
  return submitit


def queued(workdir: pathlib.Path) -> dict[str, tuple[str, str]]:
  """Returns run -> (job, state) of the sweep's jobs that Slurm still has, as PENDING or RUNNING.

  Raises:
    Mistake: Slurm does not answer, so nobody knows.
  """
  jobs = json_text.read(workdir / JOBS, {})
  if not jobs or shutil.which('squeue') is None:
    return {}
  ids = ','.join(sorted({job.partition('_')[0] for job in jobs.values()}))
  result = call('squeue', '--noheader', '--array', '--format=%i %T', f'--jobs={ids}')
  if result.returncode and 'Invalid job id' not in result.stderr:
    said = result.stderr.strip().rpartition('\n')[2]
    raise Mistake(f'Slurm does not say which jobs it still has ({said})')
  states = dict(line.split() for line in result.stdout.splitlines())
  return {name: (job, states[job]) for name, job in jobs.items() if job in states}


def parse_options(words: list[str]) -> dict[str, str]:
  """Returns {'partition': 'gpu'} of ['partition=gpu']. Raises Mistake for a word without '='."""
  options = {}
  for given in words:
    key, equals, value = given.strip().lstrip('-').partition('=')
    if not key or not equals:
      raise Mistake(f'--slurm={given}: expected options of sbatch, as in --slurm=partition=gpu')
    options[key.replace('_', '-')] = value
  for key in ('nodes', 'ntasks-per-node'):
    if not options.get(key, '1').isdigit():
      raise Mistake(f'--slurm={key}={options[key]}: expected a whole number')
  for key in ('array', 'output', 'error', 'job-name', 'time', 'requeue', 'open-mode', 'ntasks'):
    if key in options:
      advice = {'time': 'use --minutes', 'ntasks': 'use nodes and ntasks-per-node'}
      raise Mistake(f'--slurm={key}=...: the sweep sets it; {advice.get(key, "leave it out")}')
  return options


def processes(options: dict[str, str]) -> int:
  """Returns the number of processes of each run."""
  return int(options.get('nodes', 1)) * int(options.get('ntasks-per-node', 1))


def call(*words: str) -> subprocess.CompletedProcess:
  """Runs a Slurm command; returns its output, also if it fails."""
  try:
    return subprocess.run(
      words, capture_output=True, encoding='utf-8', errors='replace', timeout=60
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    return subprocess.CompletedProcess(words, 1, '', f'{shlex.join(words)}: {error}')
