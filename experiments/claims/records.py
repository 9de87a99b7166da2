"""The committed records of finished runs: docs/results/claims/CLAIM-SIZE.json, one entry a run."""

import pathlib
from collections.abc import Iterable

from crt_jax import json_text
from experiments import pages, sweep_files
from experiments.claims.claim import Claim, runs

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'claims'
DROPPED = ('perplexity', 'bits_per_byte', 'protocol')  # they follow, or all runs share them


def read(claim: Claim, size: str, folder: pathlib.Path = RESULTS) -> dict[tuple[str, int], dict]:
  """Returns (arm, seed) -> record of the finished runs that match the claim's design."""
  kept = json_text.read(file_of(claim, size, folder), {})
  return {
    key: kept[run.name]
    for key, run in runs(claim, size).items()
    if run.name in kept and kept[run.name]['flags'] == sweep_files.flags(run, {})
  }


def collect(
  claims: Iterable[Claim], size: str, workdir: pathlib.Path, folder: pathlib.Path = RESULTS
) -> int:
  """Adds the finished runs of a sweep's directory to the records; returns how many it found."""
  listed, count = json_text.read(workdir / 'sweep.json', {}).get('runs', {}), 0
  for claim in claims:
    file = file_of(claim, size, folder)
    kept = json_text.read(file, {})
    for run in runs(claim, size).values():
      flags = sweep_files.flags(run, {})
      is_finished = (workdir / run.name / 'finished.json').exists()
      if is_finished and listed.get(run.name, {}).get('flags') == flags:
        kept[run.name] = {'flags': flags} | record(workdir / run.name)
        count += 1
    if kept:
      folder.mkdir(parents=True, exist_ok=True)
      lines = [f'{json_text.dumps(name)}: {json_text.dumps(kept[name])}' for name in sorted(kept)]
      file.write_text('{\n' + ',\n'.join(lines) + '\n}\n', 'utf-8')  # a line a run
  return count


def record(run: pathlib.Path) -> dict:
  """Returns the record of a finished run: its longest evaluation, its seconds, its origin.

  And the cross-entropy of each validation during training, as [step, nats].
  """
  evaluation = json_text.parse((run / 'evaluation.json').read_bytes())
  results, data = evaluation['results'], evaluation['results']['data']
  rows = results.get('whole') or results['sampled']
  kept = [
    {name: value for name, value in row.items() if name not in DROPPED}
    | {'batch_tokens': data['batch_size'] * data['sequence_length']}
    for row in rows
  ]
  found = {
    'training_seconds': evaluation['training_seconds'],
    'results': kept,
    'validation': [
      [row['step'], row['validation_cross_entropy']]
      for row in json_text.parse_lines(run / 'metrics.jsonl')
      if 'validation_cross_entropy' in row
    ],
    'origin': evaluation['origin'],
  }
  return pages.rounded(found, digits=7)


def file_of(claim: Claim, size: str, folder: pathlib.Path) -> pathlib.Path:
  """Returns the file of all runs of a claim at a size."""
  return folder / f'{claim.owner}-{size}.json'
