"""GPT-2 by its Hugging Face names; its matrices are [in, out] there."""

from collections.abc import Iterator
from typing import Any

from crt_jax.convert.settings import Settings
from crt_jax.convert.slots import Slot
from crt_jax.schema import TransformerConfig
from crt_jax.schema.fields import require

PREFIX = 'transformer.'
IGNORED = ('.attn.bias', '.attn.masked_bias')  # the causal mask


def longest(given: Settings) -> int:
  """Returns the number of learned positions."""
  return given['n_positions']


def fields(given: Settings) -> dict[str, Any]:
  """Returns the fields of a model of style 'gpt2'; ValueError for an unsupported setting."""
  given.only('activation_function', 'gelu_new', 'gelu_pytorch_tanh')
  given.only('layer_norm_epsilon', 1e-5)
  given.only('tie_word_embeddings', True)
  given.only('scale_attn_weights', True)
  given.only('scale_attn_by_inverse_layer_idx', False)
  given.only('add_cross_attention', False)
  return dict(
    style='gpt2',
    vocab_size=given['vocab_size'],
    width=given['n_embd'],
    layers=given['n_layer'],
    heads=given['n_head'],
    feed_forward_width=given.get('n_inner', 0),
    max_positions=given['n_positions'],
  )


def settings(config: TransformerConfig, positions: int) -> dict[str, Any]:
  """Returns the config.json, the inverse of `fields`; ValueError if it has a window."""
  require(
    not config.window,
    f'model.window={config.window}: the GPT-2 of transformers attends to all positions; use '
    '--format=safetensors',
  )
  return dict(
    model_type='gpt2',
    architectures=['GPT2LMHeadModel'],
    vocab_size=config.vocab_size,
    n_embd=config.width,
    n_layer=config.layers,
    n_head=config.heads,
    n_inner=config.feed_forward_width or None,
    n_positions=positions,
    activation_function='gelu_new',
    layer_norm_epsilon=1e-5,
    embd_pdrop=0.0,
    attn_pdrop=config.dropout,
    resid_pdrop=config.dropout,
    tie_word_embeddings=True,
  )


def slots(config: TransformerConfig) -> Iterator[Slot]:
  """Returns a Slot for every array of a model."""
  yield Slot('transformer.wte.weight', ('embedding', 'weight'))
  yield Slot('transformer.wpe.weight', ('embedding', 'positions'))
  for i in range(config.layers):
    name = f'transformer.h.{i}'
    yield from _norm(f'{name}.ln_1', ('layers', 'norm1'), (i,))
    yield from _linear(f'{name}.attn.c_attn', ('layers', 'attention', 'qkv'), i, 3, 3)
    yield from _linear(f'{name}.attn.c_proj', ('layers', 'attention', 'out'), i, -2, 0)
    yield from _norm(f'{name}.ln_2', ('layers', 'norm2'), (i,))
    yield from _linear(f'{name}.mlp.c_fc', ('layers', 'feed_forward', 'up'), i)
    yield from _linear(f'{name}.mlp.c_proj', ('layers', 'feed_forward', 'down'), i)
  yield from _norm('transformer.ln_f', ('final_norm',))
  yield Slot('lm_head.weight', ('embedding', 'weight'), again=True)


def _norm(name: str, path: tuple[str, ...], index: tuple[int, ...] = ()) -> Iterator[Slot]:
  yield Slot(f'{name}.weight', (*path, 'scale'), index)
  yield Slot(f'{name}.bias', (*path, 'bias'), index)


def _linear(
  name: str, path: tuple[str, ...], i: int, merged: int = 0, merged_bias: int = 0
) -> Iterator[Slot]:
  yield Slot(f'{name}.weight', (*path, 'weight'), (i,), merged, transposed=True)
  yield Slot(f'{name}.bias', (*path, 'bias'), (i,), merged_bias)
