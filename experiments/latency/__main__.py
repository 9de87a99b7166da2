"""Times decoding, and says how much of the time is reading memory and how much is launches.

  python -m experiments.latency --config=configs/latency.py          a GPU: every axis
  python -m experiments.latency --config=configs/latency.py:paper    the CRT paper's procedure
  python -m experiments.latency --config=configs/latency_cpu.py      a CPU, in minutes
  python -m experiments.latency --config=configs/latency_smoke.py    seconds; whether it works

The machine is measured first: reading, one kernel, one call. Then a table is printed, a row for
each model and point; the work directory gets latency.json (with hardware, versions and commit) and
the figures latency and advantage (.png, .svg), whole after every row. Rows that lie there from the
same commit, device and version of JAX are kept, so an interrupted run goes on, and a command with
more models or points adds to it; --fresh measures all again.
"""

import dataclasses
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from crt_jax import cli
from crt_jax.cli import config_files
from experiments.latency import rows as table

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir('Where the rows, latency.json and the figures go')
_FRESH = flags.DEFINE_bool('fresh', False, 'Measure again what is there already.')

ROWS = 'rows.jsonl'


def main(argv: list[str]) -> None:
  del argv
  config = _CONFIG.value
  models = _models(config)
  # Everything that can be refused is refused before the first compilation.
  plan = table.plan(config, models)

  from crt_jax import json_text
  from crt_jax.runs.provenance import origin
  from experiments.latency import machine

  directory = pathlib.Path(_WORKDIR.value)
  directory.mkdir(parents=True, exist_ok=True)
  made_with = origin()
  found = machine.measure(config.bandwidth_megabytes, config.dtypes[0])
  print(table.describe(found, made_with['device']))
  same = {name: made_with[name] for name in ('device', 'commit')}
  same['jax'] = made_with['versions']['jax']
  if _FRESH.value:
    (directory / ROWS).unlink(missing_ok=True)
  measured = _finished(directory / ROWS, same)
  print(table.HEADER)
  for entry in plan:
    row = measured.get(entry.identity())
    is_known = row is not None
    if not is_known:
      row = table.measure(entry, config, found) | dict(identity=entry.identity(), **same)
      with open(directory / ROWS, 'a', encoding='utf-8') as file:
        file.write(json_text.dumps(row) + '\n')
      measured[entry.identity()] = row
    print(table.line(row), flush=True)
    rows = [measured[each.identity()] for each in plan if each.identity() in measured]
    table.compare(rows, config.matches.to_dict())
    result = _result(config, dataclasses.asdict(found), rows, made_with)
    json_text.write(directory / 'latency.json', result)
    if not is_known or entry is plan[-1]:
      names = _draw(directory, result)
  print(table.comparison(rows))
  print(f'{directory}/: latency.json, {names} (.svg too)', file=sys.stderr)


def _models(config: ConfigDict) -> dict[str, dict]:
  """Returns the fields of every timed model, by name.

  Raises:
    Mistake: `only` names no model, or a file of `extra` has no `model`.
  """
  models = {name: fields.to_dict() for name, fields in config.models.items()}
  for spec in _specs(config.extra):
    extra = config_files.load(spec)
    if 'model' not in extra:
      raise cli.Mistake(f'--config.extra: {spec} has no section "model"')
    models[config_files.name(spec)] = extra.model.to_dict()
  chosen = [name for name in config.only.split(',') if name]
  for name in chosen:
    if name not in models:
      raise cli.Mistake(f'--config.only={name} is no model; there are {", ".join(models)}')
  return {name: fields for name, fields in models.items() if not chosen or name in chosen}


def _specs(text: str) -> list[str]:
  """Splits 'a.py:R=8,P=4,b.py' before each file: commas also separate a config's arguments."""
  specs = []
  for part in filter(None, text.split(',')):
    if '.py' in part or not specs:
      specs.append(part)
    else:
      specs[-1] += f',{part}'
  return specs


def _finished(path: pathlib.Path, same: dict[str, str]) -> dict[str, dict]:
  """Returns the rows of an earlier run that are like `same`, without a cut-off line."""
  from crt_jax import json_text

  found = {}
  for line in path.read_bytes().splitlines() if path.exists() else ():
    try:
      row = json_text.parse(line)
    except ValueError:
      continue
    if same.items() <= row.items():
      found[row['identity']] = row
  return found


def _result(config: ConfigDict, machine: dict, rows: list[dict], made_with: dict) -> dict:
  """Returns the content of latency.json."""
  return dict(
    what='decode latency per token; seconds unless named otherwise',
    config=config.to_dict(),
    machine=machine,
    glibc_tunables=os.environ.get('GLIBC_TUNABLES', ''),
    datasheet_bandwidth=table.datasheet_bandwidth(),
    rows=rows,
    paper=table.PAPER,
    **made_with,
  )


def _draw(directory: pathlib.Path, result: dict) -> str:
  """Draws the figures of the rows so far, and returns their names."""
  from experiments.latency import figures

  figures.latency(result, directory / 'latency')
  drawn = figures.advantage(result, directory / 'advantage')
  return 'latency.png' + (', advantage.png' if drawn else '')


if __name__ == '__main__':
  cli.run(main)
