"""A tokenizer as files that both this project and `transformers` open."""

from pathlib import Path

import tokenizers as hf

from crt_jax import json_text
from crt_jax.data.tokenizers import DEFINITION, ByteTokenizer, JsonTokenizer
from crt_jax.data.vocabularies import SETTINGS


def write(
  folder: Path, tokenizer: ByteTokenizer | JsonTokenizer, separator: str, positions: int
) -> None:
  """Writes the tokenizer files into a folder.

  Args:
    separator: of the documents that the model was trained on, `config.data.separator`.
    positions: of the longest text that the model was trained on.
  """
  is_bytes = isinstance(tokenizer, ByteTokenizer)
  definition = _of_bytes(tokenizer) if is_bytes else tokenizer.definition
  whole = hf.Tokenizer.from_str(definition)
  bos, begins = tokenizer.bos, separator == 'bos_eos'
  if bos is not None and begins != JsonTokenizer(definition, bos).adds_bos:
    name = whole.id_to_token(bos)
    whole.post_processor = hf.processors.TemplateProcessing(
      f'{name} $A' if begins else '$A', special_tokens=[(name, bos)]
    )
    definition = whole.to_str()
  (tokenizer if is_bytes else JsonTokenizer(definition, tokenizer.bos, tokenizer.eos)).save(folder)
  (folder / DEFINITION).write_text(definition, 'utf-8')
  ends = {
    f'{kind}_token': whole.id_to_token(index)
    for kind, index in (('bos', tokenizer.bos), ('eos', tokenizer.eos))
    if index is not None
  }
  description = ends | dict(
    tokenizer_class='PreTrainedTokenizerFast',
    model_max_length=positions,
    clean_up_tokenization_spaces=False,
  )
  (folder / SETTINGS).write_text(json_text.dumps(description, indent=2) + '\n', 'utf-8')


def _of_bytes(tokenizer: ByteTokenizer) -> str:
  """Returns the tokenizer.json of the byte tokenizer: a byte-level BPE without merges."""
  byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  alphabet = sorted(byte_level.alphabet())
  # A printable byte stands for itself; the others follow, in order, behind the 256th character.
  others = (character for character in alphabet if ord(character) > 255)
  vocabulary = {chr(b) if chr(b) in alphabet else next(others): b for b in range(256)}
  whole = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=[]))
  whole.pre_tokenizer, whole.decoder = byte_level, hf.decoders.ByteLevel()
  ends = ((tokenizer.bos, '<bos>'), (tokenizer.eos, '<eos>'))  # in the order of their ids
  whole.add_special_tokens([name for index, name in ends if index is not None])
  return whole.to_str()
