"""Llama, SmolLM, Mistral, Qwen2 and Qwen3 by their Hugging Face names."""

from collections.abc import Iterator
from typing import Any

from crt_jax.convert.settings import Settings
from crt_jax.convert.slots import Slot
from crt_jax.models.layer_stacks import swiglu_width
from crt_jax.schema import TransformerConfig
from crt_jax.schema.fields import require

PREFIX = 'model.'
IGNORED = ('rotary_emb.inv_freq',)  # in early files; it follows from rope_theta


def longest(given: Settings) -> int:
  """Returns the longest length that the model was trained on."""
  return given['max_position_embeddings']


def fields(given: Settings) -> dict[str, Any]:
  """Returns the fields of a model of style 'llama'; ValueError for an unsupported setting."""
  kind = given['model_type']
  given.only('hidden_act', 'silu', 'swish')
  given.only('mlp_bias', False)
  given.only('use_sliding_window', False)
  if kind != 'qwen2':  # it always has biases on q, k and v, and none on the output
    given.only('attention_bias', False)
  heads = given['num_attention_heads']
  return dict(
    style='llama',
    vocab_size=given['vocab_size'],
    width=given['hidden_size'],
    layers=given['num_hidden_layers'],
    heads=heads,
    kv_heads=given.get('num_key_value_heads', heads),
    head_width=given['head_dim'] if kind == 'qwen3' else given.get('head_dim', 0),
    feed_forward_width=given['intermediate_size'],
    norm_eps=given['rms_norm_eps'],
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    # Of Mistral a missing window is 4,096, null is none.
    window=given.values.get('sliding_window', 4096) or 0 if kind == 'mistral' else 0,
    tied=given.get('tie_word_embeddings', False),
    **_angles(given),
  )


def _angles(given: Settings) -> dict[str, Any]:
  """Returns the rotary fields; older files have rope_scaling, newer ones rope_parameters."""
  rope, older = given.get('rope_parameters', {}), given.get('rope_scaling', {})
  require(
    not (rope and older and rope != older),
    f'{given.place} holds rope_parameters and rope_scaling; keep the one that is meant',
  )
  rope = rope or older
  by_kind = [name for name, value in rope.items() if isinstance(value, dict)]
  require(
    not by_kind,
    f'{given.place}: rotary angles that differ by layer ({", ".join(by_kind)}) are not implemented',
  )
  rope = Settings(f'{given.place}: rotary angles', rope)
  theta = rope.get('rope_theta', given.get('rope_theta', 1e4))
  for settings in (given, rope):
    settings.only('partial_rotary_factor', 1)
  scaling = rope.get('rope_type', rope.get('type', 'default'))
  if scaling == 'default':
    return dict(rotary_theta=theta)
  Settings(rope.place, dict(rope_type=scaling)).only('rope_type', 'default', 'linear', 'llama3')
  found = dict(rotary_theta=theta, rotary_scaling=scaling, rotary_factor=rope['factor'])
  if scaling == 'llama3':
    found |= dict(
      rotary_low=rope['low_freq_factor'],
      rotary_high=rope['high_freq_factor'],
      rotary_positions=rope['original_max_position_embeddings'],
    )
  return found


def settings(config: TransformerConfig, positions: int) -> dict[str, Any]:
  """Returns the config.json, the inverse of `fields`; ValueError if no family fits."""
  switches = dict(qwen3=config.qk_norm, qwen2=config.qkv_bias, mistral=config.window)
  on = [kind for kind, switch in switches.items() if switch] or ['llama']
  require(
    len(on) == 1,
    'model.qk_norm, model.qkv_bias and model.window are of Qwen3, Qwen2 and Mistral, and no '
    'model of transformers has two of them; use --format=safetensors',
  )
  return dict(
    model_type=on[0],
    architectures=[f'{on[0].title()}ForCausalLM'],
    vocab_size=config.vocab_size,
    hidden_size=config.width,
    num_hidden_layers=config.layers,
    num_attention_heads=config.heads,
    num_key_value_heads=config.kv_heads or config.heads,
    head_dim=config.head_width,
    intermediate_size=config.feed_forward_width or swiglu_width(config.width),
    hidden_act='silu',
    rms_norm_eps=config.norm_eps,
    max_position_embeddings=positions,
    sliding_window=config.window or None,
    tie_word_embeddings=config.tied,
    rope_theta=config.rotary_theta,
    rope_scaling=_scaling(config),
  )


def _scaling(config: TransformerConfig) -> dict[str, Any] | None:
  """Returns the inverse of what `_angles` reads."""
  if config.rotary_scaling == 'none':
    return None
  found = dict(rope_type=config.rotary_scaling, factor=config.rotary_factor)
  if config.rotary_scaling == 'llama3':
    found |= dict(
      low_freq_factor=config.rotary_low,
      high_freq_factor=config.rotary_high,
      original_max_position_embeddings=config.rotary_positions,
    )
  return found


def slots(config: TransformerConfig) -> Iterator[Slot]:
  """Returns a Slot for every array of a model."""
  yield Slot('model.embed_tokens.weight', ('embedding', 'weight'))
  for i in range(config.layers):
    name, feed_forward = f'model.layers.{i}', ('layers', 'feed_forward')
    yield Slot(f'{name}.input_layernorm.weight', ('layers', 'norm1', 'scale'), (i,))
    yield from _attention(f'{name}.self_attn', ('layers', 'attention'), i, config)
    yield Slot(f'{name}.post_attention_layernorm.weight', ('layers', 'norm2', 'scale'), (i,))
    yield Slot(f'{name}.mlp.gate_proj.weight', (*feed_forward, 'gate_up', 'weight'), (i, 0))
    yield Slot(f'{name}.mlp.up_proj.weight', (*feed_forward, 'gate_up', 'weight'), (i, 1))
    yield Slot(f'{name}.mlp.down_proj.weight', (*feed_forward, 'down', 'weight'), (i,))
  yield Slot('model.norm.weight', ('final_norm', 'scale'))
  owner = 'embedding' if config.tied else 'output'
  yield Slot('lm_head.weight', (owner, 'weight'), again=config.tied)


def _attention(
  name: str, path: tuple[str, ...], i: int, config: TransformerConfig
) -> Iterator[Slot]:
  """Returns the slots of attention; queries, keys and values are fused if head counts agree."""
  if config.kv_heads in (0, config.heads):
    places = {role: ('qkv', (i, index)) for index, role in enumerate('qkv')}
  else:
    places = {'q': ('q', (i,)), 'k': ('kv', (i, 0)), 'v': ('kv', (i, 1))}
  for role, (part, index) in places.items():
    for kind in ('weight', 'bias')[: 1 + config.qkv_bias]:
      yield Slot(f'{name}.{role}_proj.{kind}', (*path, part, kind), index, merged=2)
  if config.qk_norm:
    for role in 'qk':
      yield Slot(f'{name}.{role}_norm.weight', (*path, f'{role}_norm', 'scale'), (i,))
  yield Slot(f'{name}.o_proj.weight', (*path, 'out', 'weight'), (i,), merged=-2)
