"""Fetches the published corpora in the form that the papers' configs expect.

  crt-fetch --dataset=tinystories,wikipedia,fineweb-edu --output=corpora
  crt-fetch --dataset=openwebtext --output=corpora

The first is for CART (configs/cart_*.py with data=published), the second for the CRT paper's
configs. Needs a network and the extra: .venv/bin/python -m pip install -e '.[fetch]'. Stopped at
any moment it goes on with the same command; done, it compares every file with its checksum. The hub
of Hugging Face keeps what was downloaded, some GB a corpus, in a cache of its own ($HF_HOME).

The vocabulary of Llama 2 is gated there: who has accepted Meta's licence gives
--vocabulary=meta-llama/Llama-2-7b-hf and a token in $HF_TOKEN. By default the same vocabulary is
taken from TinyLlama, which is open. Whichever it is, it is compared with known token ids.

Without a network on this machine, copy the repositories' files elsewhere:
  --source=DIR    holds DIR/roneneldan/TinyStories/data/train-00000-...parquet and so on
"""

import pathlib
from typing import TYPE_CHECKING

from absl import flags

from crt_jax import cli
from crt_jax.schema.data import FETCHED

if TYPE_CHECKING:
  from crt_jax.data import published
  from crt_jax.training.terminal import Stages

NAMES = tuple(FETCHED.values())
_DATASET = flags.DEFINE_list('dataset', [], f'What to get, of {", ".join(NAMES)}.')
_OUTPUT = flags.DEFINE_string('output', 'corpora', 'Folder of all corpora.')
_SOURCE = flags.DEFINE_string('source', None, 'Folder with copies of repositories; none: the hub.')
_VOCABULARY = flags.DEFINE_string(
  'vocabulary',
  None,
  'Model on the hub that has the vocabulary of Llama 2, or the path of its tokenizer.json; none:'
  ' an open one.',
)


def main(argv: list[str]) -> None:
  del argv
  names = list(dict.fromkeys(_DATASET.value))
  if not names:
    raise cli.Mistake(f'--dataset is missing; one or several of {",".join(NAMES)}')
  for name in names:
    if name not in NAMES:
      raise cli.Mistake(f'--dataset={name} is unknown; there are {", ".join(NAMES)}')
  from crt_jax.data import published
  from crt_jax.training.terminal import Stages

  source = published.Copies(pathlib.Path(_SOURCE.value)) if _SOURCE.value else published.Hub()
  with Stages() as report:
    _fetch(names, source, pathlib.Path(_OUTPUT.value).expanduser(), report)


def _fetch(
  names: list[str], source: 'published.Source', output: pathlib.Path, report: 'Stages'
) -> None:
  from crt_jax.data import published

  vocabulary = None
  if any(name not in published.PUBLISHED or published.PUBLISHED[name].budget for name in names):
    if not _VOCABULARY.value:
      print(f'vocabulary: {published.GATED} is gated; the same tokens from {published.OPEN_TWIN}')
    taken = _VOCABULARY.value or published.OPEN_TWIN
    vocabulary = published.fetch_vocabulary(source, taken, output)
    print(f'{vocabulary}: the vocabulary of Llama 2')
  for name in names:
    if name in published.PUBLISHED:
      record = published.fetch(name, source, output, vocabulary, report)
      for split, state in record['splits'].items():
        documents, tokens = (sum(p[k] for p in state['parts']) for k in ('documents', 'tokens'))
        counted = f', {tokens:,} tokens' if tokens else ''
        folder = output / published.PUBLISHED[name].folder
        print(f'{folder}/{split}-*.jsonl.gz: {documents:,} documents{counted}')


def start() -> None:
  """Runs the console script `crt-fetch`; does not return."""
  cli.run(main)
