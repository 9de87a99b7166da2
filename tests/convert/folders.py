"""Small Hugging Face folders: config.json, safetensors and a tokenizer."""

import json

import jax
import numpy as np
import tokenizers as hf
from safetensors.numpy import save_file

import crt_jax
from crt_jax import schema
from crt_jax.convert import pretrained
from crt_jax.convert.settings import Settings
from crt_jax.convert.slots import arrays_of
from crt_jax.data.tokenizers import ByteTokenizer
from crt_jax.loading import Trained
from tests.contract.models import params_of

TOKENS = 300
BYTES = ByteTokenizer(bos=256, eos=257)
_LLAMA = dict(
  model_type='llama',
  vocab_size=TOKENS,
  hidden_size=16,
  intermediate_size=20,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  rope_theta=100.0,
)
GPT2 = dict(model_type='gpt2', vocab_size=TOKENS, n_embd=16, n_layer=3, n_head=2, n_positions=48)
# The config.json of each.
SETTINGS = {
  'llama': _LLAMA,
  'tied': _LLAMA | dict(tie_word_embeddings=True, num_key_value_heads=4),
  'mistral': _LLAMA | dict(model_type='mistral', sliding_window=3),
  'qwen2': _LLAMA | dict(model_type='qwen2'),
  'qwen3': _LLAMA | dict(model_type='qwen3'),
  'gpt2': GPT2,
}


def model_of(settings):
  """The model that a config.json describes."""
  fields = pretrained.FAMILIES[settings['model_type']].fields(Settings('config.json', settings))
  return crt_jax.build(dict(name='transformer', **fields))


def arrays_by_name(settings, params):
  names = pretrained.FAMILIES[settings['model_type']].slots(model_of(settings).config)
  return {name: np.ascontiguousarray(a) for name, a in arrays_of(names, params).items()}


def write_tokenizer(folder, size=TOKENS):
  """A byte-level BPE with names for the two ends that are not the usual ones."""
  tokenizer = hf.ByteLevelBPETokenizer()
  text = 'In the beginning was the word, and the word was long; ' + 'abcdefghij klmno ' * 99
  tokenizer.train_from_iterator([text], size - 2, show_progress=False)
  while tokenizer.get_vocab_size() < size:
    tokenizer.add_special_tokens([f'<{tokenizer.get_vocab_size()}>'])
  tokenizer.save(str(folder / 'tokenizer.json'))
  ends = dict(bos_token=f'<{size - 2}>', eos_token=dict(content=f'<{size - 1}>'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(ends))


def write(folder, case, shards=0, change=lambda arrays: arrays, **changes):
  """Writes a folder, in one file or several; returns its parameters."""
  settings = SETTINGS[case] | changes
  params = params_of(model_of(settings))
  arrays = change(arrays_by_name(settings, params))
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(settings))
  write_tokenizer(folder)
  if not shards:
    save_file(arrays, folder / 'model.safetensors')
    return params
  files = {name: f'model-{i % shards}.safetensors' for i, name in enumerate(arrays)}
  for file in set(files.values()):
    save_file({n: a for n, a in arrays.items() if files[n] == file}, folder / file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=files)))
  return params


def same_bits(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def trained(fields, tokenizer=BYTES, make=params_of):
  """A model of random parameters, as `crt_jax.load` gives it."""
  fields = fields | dict(vocab_size=tokenizer.vocab_size)
  model = crt_jax.build(fields)
  config = schema.experiment(schema.complete(type(model).Config, fields))
  config.model.vocab_size = tokenizer.vocab_size
  config.data.sequence_length = 24
  return Trained(model, make(model), tokenizer, config, 7)
