"""A .gguf file read as if it were a Hugging Face folder: settings and arrays by those names."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crt_jax.convert.settings import Settings
from crt_jax.data.gguf_vocabulary import contents, open_gguf

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
_SETTINGS = {
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'block_count': 'num_hidden_layers',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'rope.freq_base': 'rope_theta',
}
_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}


class Arrays(Mapping[str, np.ndarray]):
  """The arrays of a file by their Hugging Face names, each dequantised on access.

  Attributes:
    settings: those of the file, as a config.json has them.

  Raises:
    ValueError: the file is damaged or of another architecture.
  """

  def __init__(self, path: Path):
    reader = open_gguf(path)
    self.path, self.kind = path, contents(reader, 'general.architecture')
    if self.kind not in ARCHITECTURES:
      listed = ', '.join(ARCHITECTURES)
      raise ValueError(f'{path}: architecture {self.kind!r} is not implemented; there are {listed}')
    self._tensors = {_translated(tensor.name): tensor for tensor in reader.tensors}
    self.settings = Settings(str(path), self._settings(reader))

  def _settings(self, reader: Any) -> dict[str, Any]:
    found = {
      theirs: contents(reader, f'{self.kind}.{name}', None) for name, theirs in _SETTINGS.items()
    }
    scaling = contents(reader, f'{self.kind}.rope.scaling.type', 'none')
    factor = contents(reader, f'{self.kind}.rope.scaling.factor', None)
    if 'rope_freqs.weight' in self._tensors:
      scaling = 'rope_freqs'  # Llama 3.1's angles, as factors
    elif scaling == 'none':
      scaling = 'default'
    if contents(reader, f'{self.kind}.expert_count', 0):
      raise ValueError(f'{self.path}: a mixture of experts is not implemented')
    width = found['head_dim'] or found['hidden_size'] // found['num_attention_heads']
    found['num_key_value_heads'] = found['num_key_value_heads'] or found['num_attention_heads']
    return found | {
      'model_type': self.kind,
      'head_dim': width,
      'vocab_size': len(contents(reader, 'tokenizer.ggml.tokens')),
      'tie_word_embeddings': 'lm_head.weight' not in self._tensors,
      'rope_scaling': {'rope_type': scaling, 'factor': factor},
      'partial_rotary_factor': contents(reader, f'{self.kind}.rope.dimension_count', width) / width,
    }

  def __getitem__(self, name: str) -> np.ndarray:
    import gguf

    tensor = self._tensors[name]
    try:
      array = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
      kind = tensor.tensor_type.name
      raise ValueError(
        f'{self.path}: {name} is stored as {kind}, which cannot be read ({error})'
      ) from None
    heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
    role = name.split('.')[-2]
    if self.kind == 'llama' and role in heads:
      # GGUF rotates adjacent pairs, this project the two halves of a head.
      pairs = array.reshape(self.settings[heads[role]], -1, 2, *array.shape[1:])
      array = pairs.swapaxes(1, 2).reshape(array.shape)
    return array

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  @property
  def stored(self) -> list[str]:
    """The number types in the file."""
    return sorted({tensor.tensor_type.name for tensor in self._tensors.values()})


def _translated(name: str) -> str:
  """Returns the Hugging Face name of an array; its own name if there is none."""
  layer = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if layer and layer[2] in _NAMES:
    return f'model.layers.{layer[1]}.{_NAMES[layer[2]]}.{layer[3]}'
  part, _, kind = name.rpartition('.')
  return f'{_NAMES[part]}.{kind}' if part in _NAMES else name
