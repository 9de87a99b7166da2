"""Writes what the studies of the recurrence measured into docs/bptt.md, and their figures.

  python -m docs.make_bptt --bptt_study=DIR

Each flag is the directory of a finished study and may be left out. What is shown is kept in
docs/results/, and without flags everything is drawn anew from there.
"""

import json
import pathlib

from absl import flags

from docs.publish import FIGURES, ROOT, filled
from experiments import cli

RESULTS = ROOT / 'docs' / 'results'
PAGE = ROOT / 'docs' / 'bptt.md'
FILES = {  # of a study's directory
  'bptt_study': 'results.json',
}
DIGITS = 9  # significant; differences of perplexities are taken of what is left

for _name, _file in FILES.items():
  flags.DEFINE_string(_name, '', f'Directory of a finished study, with {_file}; only read.')


def main(argv):
  from crt_jax import json_text

  del argv
  RESULTS.mkdir(exist_ok=True)
  for name, file in FILES.items():
    given = flags.FLAGS[name].value
    if not given:
      continue
    if not (pathlib.Path(given) / file).exists():
      raise cli.Mistake(f'--{name}={given}: no {file} here')
    record = rounded(json.loads((pathlib.Path(given) / file).read_text()))
    (RESULTS / f'{name}.json').write_text(json_text.dumps(record) + '\n', 'utf-8')
  for name in FILES:
    kept = RESULTS / f'{name}.json'
    if kept.exists():
      text = SECTIONS[name](json.loads(kept.read_text('utf-8')))
      PAGE.write_text(filled(PAGE, text, name), 'utf-8')
      print(f'docs/bptt.md shows docs/results/{name}.json')


def rounded(value):
  """The same record without digits that mean nothing, and without anybody's paths."""
  if isinstance(value, dict):
    kept = {k: v for k, v in value.items() if k not in ('command', 'cache_dir', 'tfds_dir')}
    return {k: rounded(v) for k, v in kept.items()}
  if isinstance(value, list):
    return [rounded(v) for v in value]
  return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def bptt_study(record: dict) -> str:
  """Both tables and figures."""
  from crt_jax.evaluation import bptt_figures

  bptt_figures.gradients(record['gradients'], FIGURES / 'bptt_gradients.png')
  bptt_figures.fine_tuning(record, FIGURES / 'bptt_fine_tuning.png')
  return '\n'.join(
    [
      bptt_figures.gradients_table(record['gradients']),
      '',
      'Mean over seeds and batches. Memory is that of the temporaries of the compiled gradient.',
      '',
      '![Gradients against the exact one.](figures/bptt_gradients.png)',
      '',
      bptt_figures.fine_tuning_table(record),
      '',
      f'Validation perplexity per token, mean over seeds. {made_with(record)}',
      '',
      '![After fine-tuning.](figures/bptt_fine_tuning.png)',
    ]
  )


SECTIONS = {
  'bptt_study': bptt_study,
}


def made_with(record: dict) -> str:
  """On what, with which versions, when."""
  from crt_jax.evaluation import figures

  return f'Measured on {figures.caption(record["origin"])}; other work shared the machine.'


if __name__ == '__main__':
  cli.run(main)
