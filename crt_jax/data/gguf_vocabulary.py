"""The tokenizer inside a .gguf file, converted to a tokenizer.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf

from crt_jax.data.tokenizers import JsonTokenizer

_CONTROL, _ADDED = 3, 4  # kinds of tokens
_ABSENT = object()
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _by(pattern: str) -> hf.pre_tokenizers.PreTokenizer:
  """Returns a pre-tokenizer that splits by a regular expression, then into bytes."""
  split = hf.pre_tokenizers.Split(hf.Regex(pattern), 'isolated')
  return hf.pre_tokenizers.Sequence([split, _bytes(use_regex=False)])


def _bytes(use_regex: bool = True) -> hf.pre_tokenizers.PreTokenizer:
  return hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# How text is cut before merging, by the name that the file has for it.
_PRE_TOKENIZERS: dict[str, Callable[[], hf.pre_tokenizers.PreTokenizer]] = {
  'gpt-2': _bytes,
  'llama-bpe': lambda: _by(_LLAMA3),
  'qwen2': lambda: _by(_LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')),
  'smollm': lambda: hf.pre_tokenizers.Sequence([hf.pre_tokenizers.Digits(True), _bytes()]),
}


def open_gguf(path: str | Path) -> Any:
  """Returns the file as `gguf` reads it, mapped into memory.

  Raises:
    ValueError: the package is not installed, or the file is damaged.
  """
  try:
    import gguf
  except ImportError:
    raise ValueError(
      f"{path} needs the package gguf: pip install 'crt_jax[pretrained]', or pip install gguf"
    ) from None
  try:
    return gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError, EOFError) as error:
    why = ' '.join(str(error).split())
    raise ValueError(f'{path} is no whole GGUF file ({why}); fetch it again') from None


def contents(reader: Any, name: str, default: Any = _ABSENT) -> Any:
  """Returns a field of the file's metadata; ValueError if it is missing without a default.

  A float32 is the shortest number that it can be: 1e-05, not 9.999999747378752e-06.
  """
  field = reader.fields.get(name)
  if field is not None:
    value = field.contents()
    is_float32 = [kind.name for kind in field.types] == ['FLOAT32']
    return float(str(np.float32(value))) if is_float32 else value
  if default is _ABSENT:
    raise ValueError(f'GGUF: {name} is missing')
  return default


def read(path: str | Path) -> JsonTokenizer:
  """Returns the tokenizer of a file; ValueError if it cannot be rebuilt exactly."""
  reader = open_gguf(path)
  model = contents(reader, 'tokenizer.ggml.model')
  cut = contents(reader, 'tokenizer.ggml.pre', '')
  if model != 'gpt2' or cut not in _PRE_TOKENIZERS:
    raise ValueError(
      f'{path}: its tokenizer is of kind {model!r}, {cut!r}; known are '
      f"'gpt2' with {', '.join(map(repr, _PRE_TOKENIZERS))}: use the model's Hugging Face folder"
    )
  tokens = contents(reader, 'tokenizer.ggml.tokens')
  merges = [tuple(merge.split(' ')) for merge in contents(reader, 'tokenizer.ggml.merges')]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  tokenizer = hf.Tokenizer(
    hf.models.BPE(vocabulary, merges, ignore_merges=cut == 'llama-bpe')  # whole words come first
  )
  if cut == 'qwen2':
    tokenizer.normalizer = hf.normalizers.NFC()
  tokenizer.pre_tokenizer = _PRE_TOKENIZERS[cut]()
  tokenizer.decoder = hf.decoders.ByteLevel()
  kinds = contents(reader, 'tokenizer.ggml.token_type')
  for kind in (_CONTROL, _ADDED):
    added = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
    tokenizer.add_tokens(
      [hf.AddedToken(token, normalized=False, special=kind == _CONTROL) for token in added]
    )
  specials = {
    kind: contents(reader, f'tokenizer.ggml.{kind}_token_id', None) for kind in ('bos', 'eos')
  }
  # llama.cpp begins texts of Llama 3 with the start token unless the file says otherwise.
  adds_bos = contents(reader, 'tokenizer.ggml.add_bos_token', cut == 'llama-bpe')
  if adds_bos and (bos := specials['bos']) is not None:
    tokenizer.post_processor = hf.processors.TemplateProcessing(
      f'{tokens[bos]} $A', special_tokens=[(tokens[bos], bos)]
    )
  return JsonTokenizer(tokenizer.to_str(), **specials)
