"""The published corpora as files for the configs: documents, splits and order.

They come from repositories of the Hugging Face hub, or from a folder with copies of those. A split
is written as parts, PREFIX-00000.jsonl.gz and on, each complete or not there; `fetched.json` beside
them says what they were made from, their sums, and where the next part begins.
"""

import dataclasses
import fnmatch
import functools
import gzip
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any, Protocol

import tokenizers as hf

from crt_jax import json_text, storage
from crt_jax.data.missing import Missing
from crt_jax.program import install

PART_DOCUMENTS = 50_000
AT_ONCE = 1000
RECORD = 'fetched.json'
TEXT = 'text'
Report = Callable[[str, int, int], None]  # stage, done, total


@dataclasses.dataclass(frozen=True)
class Published:
  """One published corpus.

  Attributes:
    folder: where it goes, below the folder of all.
    repository, revision: of the hub; a revision may be the beginning of a commit.
    train, validation: patterns of files, of which the first that matches any counts; no validation:
      documents are held out, or nobody needs them.
    held_out: documents at the end of the last training file, or a share of that file.
    shuffled: whether the validation documents are, by `random.Random(42)`.
    budget: tokens of the vocabulary, each document with its start and end; 0 = all documents.
  """

  folder: str
  repository: str
  revision: str
  train: tuple[str, ...]
  validation: tuple[str, ...] = ()
  held_out: int | Fraction = 0
  shuffled: bool = False
  budget: int = 0


VALIDATION_BUDGET = 500_000
# docs/cart.md, 5.2, and docs/crt.md, 8.1.
PUBLISHED = {
  'tinystories': Published(
    'tiny',
    'roneneldan/TinyStories',
    'f54c09fd',
    ('data/train-*.parquet',),
    ('data/validation-*.parquet',),
    budget=300_000_000,
  ),
  'wikipedia': Published(
    'wiki',
    'wikimedia/wikipedia',
    'b04c8d1c',
    ('20231101.en/train-*.parquet',),
    held_out=28_288,
    budget=300_000_000,
  ),
  'fineweb-edu': Published(
    'edu',
    'HuggingFaceFW/fineweb-edu',
    '87f09149',
    ('sample/10BT/*.parquet',),
    held_out=Fraction(1, 7),  # one of 98 shards, of which 14 files hold 7 each
    shuffled=True,
    budget=400_000_000,
  ),
  'openwebtext': Published(
    'openwebtext',
    'Skylion007/openwebtext',
    'main',
    ('plain_text/train-*.parquet', 'data/train-*.parquet'),
  ),
}
GATED = 'meta-llama/Llama-2-7b-hf'
OPEN_TWIN = 'TinyLlama/TinyLlama-1.1B-Chat-v1.0'  # which took over the tokenizer of Llama 2
# Token ids that distinguish the vocabulary of Llama 2 from others of 32 000 tokens.
PROBE = 'Hello this is a test', [15043, 445, 338, 263, 1243]


class Source(Protocol):
  """A place to read files of repositories from."""

  def commit(self, repository: str, revision: str) -> str: ...

  def files(self, repository: str, commit: str) -> list[str]: ...

  def path(self, repository: str, commit: str, file: str, kind: str = 'dataset') -> Path: ...


@dataclasses.dataclass(frozen=True)
class Copies:
  """A folder that holds ROOT/OWNER/NAME/FILE, copied from the hub."""

  root: Path

  def commit(self, repository: str, revision: str) -> str:
    del repository
    return revision

  def files(self, repository: str, commit: str) -> list[str]:
    del commit
    folder = self.root / repository
    return [str(p.relative_to(folder)) for p in sorted(folder.rglob('*')) if p.is_file()]

  def path(self, repository: str, commit: str, file: str, kind: str = 'dataset') -> Path:
    del commit, kind
    path = self.root / repository / file
    if not path.is_file():
      raise ValueError(f'--source={self.root} has no {repository}/{file}; copy it from the hub')
    return path


class Hub:
  """huggingface.co; files stay in its own cache, in which a broken download continues."""

  def __init__(self):
    try:
      import huggingface_hub
    except ImportError:
      raise Missing('fetching needs the package huggingface_hub', install('fetch')) from None
    self._hub = huggingface_hub

  def commit(self, repository: str, revision: str) -> str:
    def find() -> str:
      if revision == 'main':
        return str(self._hub.HfApi().repo_info(repository, repo_type='dataset').sha)
      commits = self._hub.HfApi().list_repo_commits(repository, repo_type='dataset')
      return next(c.commit_id for c in commits if c.commit_id.startswith(revision))

    return self._ask(repository, find)

  def files(self, repository: str, commit: str) -> list[str]:
    def find() -> list[str]:
      api = self._hub.HfApi()
      return sorted(api.list_repo_files(repository, repo_type='dataset', revision=commit))

    return self._ask(repository, find)

  def path(self, repository: str, commit: str, file: str, kind: str = 'dataset') -> Path:
    def find() -> Path:
      options = {'repo_type': kind, 'revision': commit}
      return Path(self._hub.hf_hub_download(repository, file, **options))

    return self._ask(f'{repository}/{file}', find)

  def _ask(self, what: str, find: Callable[[], Any]) -> Any:
    try:
      return find()
    except Exception as error:  # errors of the network or the hub, or missing files
      line = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
      raise ValueError(
        f'huggingface.co does not give {what} ({line}); check the network, or copy its files into '
        'a folder and give that as --source'
      ) from None


def fetch_vocabulary(source: Source, repository: str, output: Path) -> Path:
  """Writes llama2/tokenizer.json, unless it exists; returns its path.

  Args:
    repository: of a model on the hub that has it, or the path of a tokenizer.json.

  Raises:
    ValueError: it is another vocabulary.
  """
  target = output / 'llama2' / 'tokenizer.json'
  if not target.exists():
    path = Path(repository)
    if not path.is_file():
      path = source.path(repository, 'main', target.name, 'model')
    _check_vocabulary(path, repository)
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.write_file(target, path.read_bytes())
  _check_vocabulary(target, str(target))
  return target


def _check_vocabulary(path: Path, name: str) -> None:
  try:
    ids = hf.Tokenizer.from_file(str(path)).encode(PROBE[0], add_special_tokens=False).ids
  except Exception as error:  # the library raises bare Exception
    raise ValueError(f'{name} is no tokenizer.json ({" ".join(str(error).split())})') from None
  if ids != PROBE[1]:
    raise ValueError(
      f'{name} is not the vocabulary of Llama 2: it reads {PROBE[0]!r} as {ids}, not {PROBE[1]}'
    )


def fetch(
  name: str, source: Source, output: Path, vocabulary: Path | None, report: Report
) -> dict[str, Any]:
  """Writes a published corpus below `output`, or continues where an earlier call stopped.

  Every part that is there is compared with its sum; from a damaged one on they are made again.

  Args:
    vocabulary: counts the tokens of a budget.

  Returns:
    What `fetched.json` says.

  Raises:
    ValueError: the source cannot be read, or the folder holds another revision or budget.
  """
  corpus = PUBLISHED[name]
  folder = output / corpus.folder
  commit = source.commit(corpus.repository, corpus.revision)
  made_from = {
    'repository': corpus.repository,
    'commit': commit,
    'budget': corpus.budget,
    'vocabulary': _sha256(vocabulary) if vocabulary and corpus.budget else '',
  }
  record = _read_record(folder, made_from)
  reader = _Reader(corpus, source, commit)
  folder.mkdir(parents=True, exist_ok=True)
  counter = hf.Tokenizer.from_file(str(vocabulary)) if vocabulary and corpus.budget else None
  splits = {'train': (reader.training, corpus.budget)}
  if corpus.validation or corpus.held_out:
    splits['validation'] = reader.validation, VALIDATION_BUDGET
  for split, (documents, budget) in splits.items():
    state = record['splits'].setdefault(split, {'parts': [], 'complete': False})
    report(f'{name}, {split}: comparing with checksums', 0, 1)
    _drop_damaged(state, folder)
    if not state['complete']:
      of_split = functools.partial(report, f'{name}, {split}')
      _write_split(split, documents, folder, record, budget, counter, of_split)
  return record


Place = tuple[int, int]  # a file, and a row of it


class _Reader:
  """The documents of each split, each with the position after it."""

  def __init__(self, corpus: Published, source: Source, commit: str):
    self._corpus, self._source, self._commit = corpus, source, commit
    self._names = source.files(corpus.repository, commit)

  def training(self, start: Place) -> Iterator[tuple[str, Place]]:
    files = self._matching(self._corpus.train)
    for index in range(start[0], len(files)):
      rows = self._rows(files[index])
      stop = rows - self._held_out(rows) if index == len(files) - 1 else rows
      first = start[1] if index == start[0] else 0
      for row, text in self._texts(files[index], first, stop):
        yield text, (index, row + 1)

  def validation(self, start: Place) -> Iterator[tuple[str, Place]]:
    if self._corpus.validation:
      files = self._matching(self._corpus.validation)
      first = 0
    else:
      files = self._matching(self._corpus.train)[-1:]
      first = self._rows(files[0]) - self._held_out(self._rows(files[0]))
    texts = [t for f in files for _, t in self._texts(f, first, self._rows(f))]
    if self._corpus.shuffled:
      random.Random(42).shuffle(texts)
    for row, text in enumerate(texts[start[1] :], start=start[1]):
      yield text, (0, row + 1)

  def _held_out(self, rows: int) -> int:
    held_out = self._corpus.held_out
    count = held_out if isinstance(held_out, int) else int(rows * held_out)
    if count >= rows:
      raise ValueError(f'{self._corpus.repository}: {rows} documents in its last file are too few')
    return count

  def _matching(self, patterns: tuple[str, ...]) -> list[str]:
    for pattern in patterns:
      found = [name for name in self._names if fnmatch.fnmatch(name, pattern)]
      if found:
        return found
    has = ', '.join(self._names[:3]) or 'nothing'
    raise ValueError(
      f'{self._corpus.repository} at {self._commit} has no {" or ".join(patterns)} (has {has}, ...)'
    )

  def _open(self, name: str) -> Any:
    import pyarrow.parquet

    path = self._source.path(self._corpus.repository, self._commit, name)
    return pyarrow.parquet.ParquetFile(path)

  def _rows(self, name: str) -> int:
    return self._open(name).metadata.num_rows

  def _texts(self, name: str, first: int, stop: int) -> Iterator[tuple[int, str]]:
    row = 0
    for batch in self._open(name).iter_batches(batch_size=AT_ONCE, columns=[TEXT]):
      if row + len(batch) > first and row < stop:
        for offset, text in enumerate(batch.column(0).to_pylist()):
          if first <= row + offset < stop and text and text.strip():
            yield row + offset, text
      row += len(batch)


def _drop_damaged(state: dict[str, Any], folder: Path) -> None:
  """Forgets the first damaged part, and the parts after it."""
  for index, part in enumerate(state['parts']):
    path = folder / part['file']
    if not path.is_file() or _sha256(path) != part['sha256']:
      state.update(parts=state['parts'][:index], complete=False)
      return


def _write_split(
  split: str,
  documents: Callable[[Place], Iterator[tuple[str, Place]]],
  folder: Path,
  record: dict[str, Any],
  budget: int,
  counter: hf.Tokenizer | None,
  report: Callable[[int, int], None],
) -> None:
  """Writes the parts of a split that do not exist yet."""
  state = record['splits'][split]
  tokens = sum(part['tokens'] for part in state['parts'])
  place = tuple(state['parts'][-1]['next']) if state['parts'] else (0, 0)
  texts, size = [], 0
  report(tokens, budget or 1)  # without a budget the total is unknown
  left = documents(place)
  while chunk := list(itertools.islice(left, AT_ONCE)):
    for (text, place), count in zip(chunk, _counts(counter, chunk), strict=True):
      if budget and tokens + size >= budget:
        break
      texts.append(text)
      size += count
      if len(texts) == PART_DOCUMENTS:
        _write_part(folder, split, record, texts, size, place)
        tokens, texts, size = tokens + size, [], 0
    if budget:
      report(min(tokens + size, budget), budget)
      if tokens + size >= budget:
        break
  if texts:
    _write_part(folder, split, record, texts, size, place)
  state['complete'] = True
  json_text.write(folder / RECORD, record)


def _counts(counter: hf.Tokenizer | None, chunk: list[tuple[str, Place]]) -> list[int]:
  """Returns the tokens of each document with its start and end; 0 if nothing counts them."""
  if counter is None:
    return [0] * len(chunk)
  texts = [text for text, _ in chunk]
  return [2 + len(e.ids) for e in counter.encode_batch_fast(texts, add_special_tokens=False)]


def _write_part(
  folder: Path, split: str, record: dict[str, Any], texts: list[str], tokens: int, place: Place
) -> None:
  parts = record['splits'][split]['parts']
  lines = ''.join(json_text.dumps({TEXT: text}, ensure_ascii=False) + '\n' for text in texts)
  packed = gzip.compress(lines.encode('utf-8'), compresslevel=4, mtime=0)
  file = f'{split}-{len(parts):05d}.jsonl.gz'
  storage.write_file(folder / file, packed)
  parts.append(
    {
      'file': file,
      'sha256': hashlib.sha256(packed).hexdigest(),
      'documents': len(texts),
      'tokens': tokens,
      'next': list(place),
    }
  )
  json_text.write(folder / RECORD, record)


def _read_record(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
  file = folder / RECORD
  if not file.exists():
    return {**made_from, 'splits': {}}
  record = json_text.parse(file.read_text('utf-8'))
  for field, value in made_from.items():
    if record.get(field) != value:
      raise ValueError(
        f'{folder} holds documents of another {field} ({record.get(field)}, now {value}); '
        'remove it, or choose another --output'
      )
  return record


def _sha256(path: PurePath) -> str:
  with Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
