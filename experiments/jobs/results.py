"""All runs of a sweep in one SQLite file, made anew from their folders each time.

  runs         one row a run: state, step, where and with what it was made, its last error
  config       run, field, value: every field of every run's config, value as JSON
  metrics      run, step, name, value: the rows of metrics.jsonl
  evaluations  run and what evaluation.json holds: protocol, validation set, form, depth, perplexity

The folders stay the truth: the file may be deleted at any time.
"""

import json
import os
import pathlib
import sqlite3

from crt_jax import json_text, schema
from experiments.jobs import attempts
from experiments.jobs.status import Standing

FILE = 'results.sqlite'
TABLES = """
create table runs (
  run text primary key, state text, step integer, steps integer, training_seconds real,
  attempts integer, failures integer, error text, traceback text, job text, workdir text,
  command text, at text, commit_id text, python text, versions text, platform text, device text,
  devices integer
);
create table config (run text, field text, value text, primary key (run, field));
create table metrics (
  run text, step integer, name text, value real, primary key (run, step, name)
);
create table evaluations (
  run text, protocol text, validation_set text, form text, depth integer,
  is_inference_metric integer, perplexity real, cross_entropy real, bits_per_byte real,
  targets integer
);
create view configs as select run, json_group_object(field, json(value)) as config
  from config group by run;
"""


def collect(workdir: pathlib.Path, found: list[Standing]) -> pathlib.Path:
  """Writes WORKDIR/results.sqlite from the folders of all runs and returns its path.

  A reader finds the old file or the new one, never a part.
  """
  scratch = workdir / f'{FILE}.{os.getpid()}.partial'
  scratch.unlink(missing_ok=True)
  database = sqlite3.connect(scratch)
  try:
    with database:
      database.executescript(TABLES)
      for one in found:
        add(database, workdir / one.name, one)
  finally:
    database.close()
  os.replace(scratch, workdir / FILE)
  return workdir / FILE


def add(database: sqlite3.Connection, folder: pathlib.Path, one: Standing) -> None:
  """Adds one run with all that its folder holds."""
  saved = json_text.read(folder / 'config.json', {})
  evaluation = json_text.read(folder / 'evaluation.json', {})
  finished = json_text.read(folder / 'finished.json', {})
  kept = attempts.read(folder)
  # The origin of the evaluation's numbers; before there are any, that of the run's start.
  origin = evaluation.get('origin') or saved.get('origin') or {}
  last_failure = (kept['failures'] or [{}])[-1]
  rows = json_text.rows(folder / 'metrics.jsonl')
  seconds = finished.get('training_seconds', (rows or [{}])[-1].get('training_seconds'))
  insert(
    database,
    'runs',
    {
      'run': one.name,
      'state': one.state,
      'step': one.step,
      'steps': one.steps,
      'training_seconds': seconds,
      'attempts': one.attempts,
      'failures': one.failures,
      'error': last_failure.get('error'),
      'traceback': last_failure.get('traceback'),
      'job': one.job,
      'workdir': str(folder.resolve()),
      'command': origin.get('command'),
      'at': origin.get('at'),
      'commit_id': origin.get('commit'),
      'python': origin.get('python'),
      'versions': json.dumps(origin['versions']) if 'versions' in origin else None,
      'platform': origin.get('platform'),
      'device': origin.get('device'),
      'devices': origin.get('devices'),
    },
  )
  for field, value in schema.flat(saved.get('config', {})).items():
    insert(database, 'config', {'run': one.name, 'field': field, 'value': json.dumps(value)})
  database.executemany(
    'insert or replace into metrics values (?, ?, ?, ?)',
    [
      (one.name, row['step'], name, value)
      for row in rows
      for name, value in row.items()
      if name != 'step' and isinstance(value, int | float)
    ],
  )
  for kind in ('sampled', 'whole'):
    for row in evaluation.get('results', {}).get(kind, []):
      names = ('protocol', 'form', 'depth', 'is_inference_metric', 'perplexity', 'cross_entropy')
      values = {name: row.get(name) for name in (*names, 'bits_per_byte', 'targets')}
      insert(database, 'evaluations', {'run': one.name, 'validation_set': row.get('set'), **values})


def insert(database: sqlite3.Connection, table: str, values: dict) -> None:
  """Adds one row, by the names of its columns."""
  columns, marks = ', '.join(values), ', '.join('?' * len(values))
  database.execute(f'insert into {table} ({columns}) values ({marks})', [*values.values()])
