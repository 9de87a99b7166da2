"""The papers' claims: what there is, the runs that decide them, the verdicts (docs/claims.md).

  python -m experiments.claims --list
  python -m experiments.claims --run=layers_or_recurrence --size=cpu
  python -m experiments.claims --run=layers_or_recurrence --only="*crt2*,*layers4*"
  python -m experiments.claims --collect --size=cpu
  python -m experiments.claims --report

--list prints each claim with its runs, how long they may take on two cores, and what is missing.
--run starts the runs through experiments.sweep, whose flags it takes too (--executor=slurm,
--parallel, --retries, ...): the same command goes on where it was stopped, so `timeout 480` before
it makes a piece of eight minutes. --size=gpu needs the texts of experiments.fetch. When local runs
have ended, and with --collect, finished ones are added to docs/results/claims/. --report writes
docs/claims.md, the tables in README and docs/pretrained.md and the figures from these records
alone, the same each time.
"""

import pathlib

from absl import flags

from crt_jax import cli
from experiments import pages, sweep
from experiments.claims import claim as claims
from experiments.claims.claim import Claim

_LIST = flags.DEFINE_bool('list', False, 'Print the claims, their runs and how long they take.')
_RUN = flags.DEFINE_list('run', [], 'Claims whose runs to start, or all.')
_SIZE = flags.DEFINE_enum('size', 'cpu', claims.SIZES, 'Of the runs.')
_COLLECT = flags.DEFINE_bool(
  'collect', False, 'Keep the records of what has finished in --workdir.'
)
_REPORT = flags.DEFINE_bool(
  'report', False, 'Write docs/claims.md, and what README and docs/pretrained.md show.'
)
SWEEP = 'experiments/claims/sweep_file.py'
flags.FLAGS.set_default('workdir', 'runs/claims')  # of all sizes


def main(argv: list[str]) -> int:
  from experiments.claims import disruption, page, readme, records
  from experiments.claims.registered import CLAIMS

  asked = [_LIST.value, bool(_RUN.value), _COLLECT.value, _REPORT.value]
  if sum(asked) != 1:
    raise cli.Mistake('give one of --list, --run=CLAIM,..., --collect and --report')
  if _LIST.value:
    print(page.listing(CLAIMS))
    return cli.DONE
  if _REPORT.value:
    page.write(CLAIMS)
    for name, about in (('README.md', readme), ('docs/pretrained.md', disruption)):
      path = records.ROOT / name
      path.write_text(pages.filled(path, about.text(CLAIMS), 'claims'), 'utf-8')
    return cli.DONE
  code = cli.DONE
  if _RUN.value:
    chosen = choose(CLAIMS)
    arguments = f'claims={"+".join(one.name for one in chosen)},size={_SIZE.value}'
    flags.FLAGS['config'].parse(f'{SWEEP}:{arguments}')
    code = sweep.main(argv)
  count = records.collect(with_runs(CLAIMS), _SIZE.value, pathlib.Path(flags.FLAGS.workdir))
  print(f'{count} finished runs are in {records.RESULTS.relative_to(records.ROOT)}')
  return code


def with_runs(known: dict[str, Claim]) -> list[Claim]:
  """Returns the claims that have runs of their own at --size."""
  return [one for one in known.values() if _SIZE.value in one.designs]


def choose(known: dict[str, Claim]) -> list[Claim]:
  """Returns the claims that --run names.

  Raises:
    Mistake: a name that is no claim, or has no runs at --size.
  """
  names = [one.name for one in with_runs(known)] if _RUN.value == ['all'] else _RUN.value
  for name in names:
    if name not in known:
      raise cli.Mistake(f'--run={name} is no claim; there are {", ".join(known)}')
    if _SIZE.value not in known[name].designs:
      sizes = ', '.join(known[name].designs) or 'none'
      raise cli.Mistake(f'--run={name} has no runs at --size={_SIZE.value}; it has {sizes}')
  return [known[name] for name in names]


if __name__ == '__main__':
  cli.run(main)
