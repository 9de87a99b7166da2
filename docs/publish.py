"""Writes what was measured into the pages of the documentation, and draws its figures.

  python -m docs.publish --latency=runs/latency_cpu --prefill=runs/prefill
  python -m docs.publish

Each flag is the directory that the study of that name has written. Its record is kept in
docs/results/, from which, without flags, all pages and figures are made anew. In a page the text
between <!-- NAME --> and <!-- /NAME --> is replaced.
"""

import importlib
import json
import pathlib
from types import ModuleType

from absl import flags

from crt_jax import cli
from experiments import pages

ROOT = pathlib.Path(__file__).parents[1]
FIGURES, RESULTS = ROOT / 'docs' / 'figures', ROOT / 'docs' / 'results'

# Each module has `read(folder, name)`, the record to keep, and `texts(record, name, figures)`, the
# text of each page.
STUDIES = {
  'quickstart': 'docs.quickstart',
  'latency': 'experiments.latency.page',
  'latency_peers': 'experiments.latency.page',
  'prefill': 'experiments.prefill.page',
  'convergence': 'experiments.convergence.page',
  'bptt_study': 'experiments.bptt_study.page',
  'pointer_chasing': 'experiments.pointer_chasing.page',
  'loops_at_evaluation': 'experiments.study.page',
  'state_growth': 'experiments.state_growth.page',
  'gate': 'experiments.study.page',
  'prelude_or_loops': 'experiments.study.page',
}

# What benchmarks.aot has compiled; its records lie with those of the benchmarks.
COMPILED = {
  'aot': 'aot',
  'scaling': 'weak_scaling',
  'predicted': 'weak_scaling',
  'slices': 'slices',
}


def main(argv: list[str]):
  from crt_jax import json_text

  del argv
  given = {name: path for name in STUDIES if (path := flags.FLAGS[name].value)}
  # All are read before any is written, so that a mistake in the last is reported at once.
  records = {name: page_of(name).read(pathlib.Path(path), name) for name, path in given.items()}
  for name, record in records.items():
    kept(name).write_text(json_text.dumps(record) + '\n', 'utf-8')
  for name in given or (*STUDIES, *COMPILED):
    if (file := kept(name)).exists():
      show(name, page_of(name).texts(json.loads(file.read_text('utf-8')), name, FIGURES))


def page_of(name: str) -> ModuleType:
  """Returns the module that writes the text of that name."""
  return importlib.import_module(STUDIES.get(name, 'docs.scaling'))


def kept(name: str) -> pathlib.Path:
  """Returns the file from which it is written."""
  if name in COMPILED:
    return ROOT / 'benchmarks' / 'results' / f'{COMPILED[name]}.json'
  return RESULTS / f'{name}.json'


def show(name: str, texts: dict[str, str]) -> None:
  """Writes the texts between the marks of their pages."""
  for page, text in texts.items():
    (ROOT / page).write_text(pages.filled(ROOT / page, text, name), 'utf-8')
    print(f'{page} shows {name}')


if __name__ == '__main__':
  for study in STUDIES:
    flags.DEFINE_string(study, '', 'Directory of a finished study; only read.')
  cli.run(main)
