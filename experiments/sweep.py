"""Runs every experiment that a sweep lists, on this machine or as jobs of a Slurm cluster.

  python -m experiments.sweep --config=configs/sweeps/cart_stage1.py:cpu
  python -m experiments.sweep --config=configs/sweeps/cart_stage1.py --executor=slurm \\
      --parallel=16 --minutes=480 --slurm=partition=gpu,gpus-per-node=1,cpus-per-task=8,mem=64G
  python -m experiments.sweep --workdir=runs/cart_stage1 --status

A finished run is skipped, an interrupted one goes on, one that failed is started again --retries
times: so the same command goes on where it was stopped, and with local runs it ends when all have
ended. With Slurm it submits job arrays and returns; each job looks after itself. --only starts
some of the runs, --status shows where all stand. --config.FIELD=VALUE sets a field of every run.
The directory then holds

  NAME/             the work directory of a run, as experiments.main leaves it
  NAME/attempts/    the output of every attempt, and the traceback of those that failed
  sweep.json        what the sweep lists
  results.sqlite    all runs: config, metrics, evaluation, what they were made with
"""

import fnmatch
import pathlib
import signal

from absl import flags
from ml_collections import config_flags

from crt_jax import cli, json_text
from experiments import sweep_files
from experiments.jobs import attempts, local, plan, results, slurm, status

_CONFIG = cli.define_config(required=False, load=sweep_files.first_config)
_WORKDIR = cli.define_workdir('Directory of the sweep')
_EXECUTOR = flags.DEFINE_enum(
  'executor', 'local', ['local', 'slurm'], 'Processes of this machine, or jobs of a cluster.'
)
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Runs at a time.', lower_bound=1)
_RETRIES = flags.DEFINE_integer(
  'retries', 2, 'How often a run that fails is started again.', lower_bound=0
)
_STATUS = flags.DEFINE_bool(
  'status', False, 'Start nothing: show where the runs stand and collect the results.'
)
_ONLY = flags.DEFINE_list(
  'only', [], "Start or show those whose names fit a pattern, as '*-s42,baseline-*'; empty: all."
)
_GPUS = flags.DEFINE_list('gpus', [], 'GPUs that local runs take turns at, as 0,1,2,3; empty: all.')
_MINUTES = flags.DEFINE_integer(
  'minutes', 60, 'Time of a Slurm job; what needs longer is saved and requeued.', lower_bound=5
)
_SLURM = flags.DEFINE_list(
  'slurm', [], 'Options of sbatch, as partition=gpu,gpus-per-node=1,mem=64G.'
)
_SETUP = flags.DEFINE_string(
  'setup', '', "Shell that each Slurm job starts with, as 'module load cuda'."
)


def main(argv: list[str]) -> int:
  del argv
  workdir = pathlib.Path(_WORKDIR.value)
  if _STATUS.value:
    show(workdir, chosen(plan.saved(workdir)['runs'], _ONLY.value or ['*']))
    return cli.DONE
  cli.require_config()
  options = slurm_options()
  spec, runs = plan_runs(workdir)
  queued = slurm.queued(workdir)
  found = standings(workdir, runs, queued)
  startable = [one.name for one in found if may_start(one)]
  if _EXECUTOR.value == 'local':
    return run_here(runs, startable, workdir)
  jobs = {name: job for name, (job, _) in queued.items()}
  submit(spec, runs, startable, jobs, workdir, options)
  show(workdir, runs)
  return cli.DONE


def submit(
  spec: str,
  runs: dict[str, dict],
  startable: list[str],
  jobs: dict[str, str],
  workdir: pathlib.Path,
  options: dict[str, str],
) -> None:
  """Submits an array of what can start now, and one for each run that others begin with.

  Args:
    jobs: run -> its job, of those that Slurm has already.
  """
  arrays = {'': may_begin(runs, startable, workdir)}
  for name in startable:
    if name not in arrays['']:
      arrays.setdefault(runs[name]['after'], []).append(name)
  title = pathlib.Path(spec.partition(':')[0]).stem
  for first, names in arrays.items():
    if first and first not in jobs:
      say_waiting(runs, names)
    elif names:
      launches = [launch(name, runs[name], workdir, slurm.processes(options)) for name in names]
      wait = slurm.after(jobs[first]) if first else {}
      limits = (_PARALLEL.value, _MINUTES.value)
      jobs |= slurm.submit(launches, workdir, title, *limits, options | wait, _SETUP.value)
      when = f', when {first} has finished' if first else ''
      print(f'submitted {len(names)} jobs, at most {_PARALLEL.value} at a time{when}')


def plan_runs(workdir: pathlib.Path) -> tuple[str, dict[str, dict]]:
  """Checks every run of the sweep and writes sweep.json; returns --config and the runs to start."""
  spec = config_flags.get_config_filename(flags.FLAGS['config'])
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  runs = sweep_files.load(spec)
  listing = plan.listing(spec, runs, overrides)
  merged = plan.merged(workdir, listing)
  plan.check(runs, overrides, workdir)
  if _EXECUTOR.value == 'slurm':
    plan.refuse_stand_ins(spec, runs, overrides)
  wanted = chosen(listing['runs'], _ONLY.value or ['*'])
  workdir.mkdir(parents=True, exist_ok=True)
  json_text.write(workdir / plan.LISTING, merged)
  return spec, wanted


def chosen(runs: dict[str, dict], patterns: list[str]) -> dict[str, dict]:
  """Returns the runs whose names fit a pattern of --only."""
  for pattern in patterns:
    if not fnmatch.filter(runs, pattern):
      raise cli.Mistake(f'--only={pattern} fits no run; there are {", ".join(list(runs)[:3])}, ...')
  return {
    name: run for name, run in runs.items() if any(fnmatch.fnmatch(name, p) for p in patterns)
  }


def may_begin(runs: dict[str, dict], names: list[str], workdir: pathlib.Path) -> list[str]:
  """Returns the runs that start from no other run, or from one that has finished."""
  return [
    name
    for name in names
    if 'after' not in runs[name] or (workdir / runs[name]['after'] / 'finished.json').exists()
  ]


def say_waiting(runs: dict[str, dict], names: list[str]) -> None:
  for name in names:
    after = runs[name]['after']
    print(f'{name} begins with {after}; when that has finished, the same command starts it')


def launch(name: str, run: dict, workdir: pathlib.Path, processes: int) -> attempts.Launch:
  """Returns the launch of a run: a person's command, in the run's own directory."""
  folder = plan.folder_of(name, workdir)
  more = ['--distributed=on' if processes > 1 else '--distributed=off']
  if 'after' in run:
    more.append(f'--config.train.init_from={plan.folder_of(run["after"], workdir)}')
  command = sweep_files.command(run['flags'], str(folder), *more)
  return attempts.Launch.of(name, folder, command, _RETRIES.value, processes)


def slurm_options() -> dict[str, str]:
  """Returns the options of sbatch, after checking that Slurm is available."""
  options = slurm.parse_options(_SLURM.value)
  if _EXECUTOR.value == 'slurm':
    slurm.require()
    if _GPUS.value:
      raise cli.Mistake('--gpus is for local runs; use --slurm=gpus-per-node=1')
  elif options or _SETUP.value:
    raise cli.Mistake(f'--{"slurm" if options else "setup"} is for --executor=slurm')
  return options


def standings(workdir: pathlib.Path, runs: dict[str, dict], jobs: dict) -> list[status.Standing]:
  """Returns the status of the runs of a listing."""
  return status.standings(workdir, {name: run['steps'] for name, run in runs.items()}, jobs)


def may_start(one: status.Standing) -> bool:
  """Returns whether to start a run now: it is unfinished, and nobody else runs it."""
  if one.state in (status.RUNNING, status.QUEUED):
    job = f' as job {one.job}' if one.job else ''
    print(f'{one.name} is {one.state} already{job}; left alone')
  return one.state not in (status.FINISHED, status.RUNNING, status.QUEUED)


def run_here(runs: dict[str, dict], startable: list[str], workdir: pathlib.Path) -> int:
  """Runs all unfinished runs on this machine and shows the results; returns the exit code."""
  pool, waiting = local.Pool(_PARALLEL.value, tuple(_GPUS.value)), startable
  while pool.stopped_by is None and (ready := may_begin(runs, waiting, workdir)):
    pool.run([launch(name, runs[name], workdir, processes=1) for name in ready])
    waiting = [name for name in waiting if name not in ready]
  found = show(workdir, runs)
  if pool.stopped_by is not None:
    print('stopped; the same command goes on')
    return cli.PREEMPTED if pool.stopped_by == signal.SIGTERM else cli.INTERRUPTED
  say_waiting(runs, waiting)
  return cli.DONE if all(one.state == status.FINISHED for one in found) else 1


def show(workdir: pathlib.Path, runs: dict[str, dict]) -> list[status.Standing]:
  """Prints a table of `runs`, returns their status, and rewrites the results of the whole sweep."""
  saved = plan.saved(workdir)
  try:
    jobs = slurm.queued(workdir)
  except cli.Mistake as error:
    print(f'{error}; the table is shown without them')
    jobs = {}
  found = standings(workdir, saved['runs'], jobs)
  shown = [one for one in found if one.name in runs]
  status.show(saved['config'], shown, workdir)
  if len(shown) < len(found):
    print(f'--status shows all {len(found)} runs')
  file = results.collect(workdir, found)
  print(f'all results are in {file}')
  return shown


if __name__ == '__main__':
  cli.run(main)
