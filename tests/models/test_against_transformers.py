"""The styles of published weights compute what `transformers` does; skipped without it."""

import jax
import numpy as np
import pytest

from tests.close import FLOAT32, assert_close
from tests.contract.models import model_of, params_of, tokens_of

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 12
SHAPE = dict(
  vocab_size=23,
  hidden_size=16,
  intermediate_size=20,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-5,
)
ROPE = dict(rope_theta=1e4)
LLAMA3 = dict(
  rope_type='llama3',
  factor=8.0,
  low_freq_factor=0.5,
  high_freq_factor=2.0,
  original_max_position_embeddings=9,
)
PLAIN = dict(norm_eps=1e-5, qk_norm=False, qkv_bias=False)
# Changes to the tests' 'llama', class and configuration there.
CASES = {
  'llama3': (
    dict(
      rotary_scaling='llama3',
      rotary_factor=8,
      rotary_low=0.5,
      rotary_high=2,
      rotary_positions=9,
      tied=True,
    ),
    'Llama',
    dict(head_dim=6, rope_parameters=ROPE | LLAMA3, tie_word_embeddings=True),
  ),
  'linear': (
    dict(rotary_scaling='linear', rotary_factor=4, rotary_theta=100),
    'Llama',
    dict(head_dim=6, rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=100.0)),
  ),
  'qwen2': (dict(qkv_bias=True, head_width=4), 'Qwen2', dict(rope_parameters=ROPE)),
  'qwen3': (dict(qk_norm=True), 'Qwen3', dict(head_dim=6, rope_parameters=ROPE)),
}


def tensor(a):
  return torch.from_numpy(np.array(a))


def logits_of(peer, state, tokens):
  """Those of `peer` with these weights; every weight is given, none is left over."""
  missing, unexpected = peer.load_state_dict(state, strict=False)
  assert not unexpected and set(missing) <= {'lm_head.weight'}
  peer.tie_weights()
  with torch.no_grad():
    return peer.eval()(tensor(tokens).long()).logits.numpy()


def llama_weights(params, layers):
  attention, feed_forward = params['layers']['attention'], params['layers']['feed_forward']
  state = {
    'model.embed_tokens.weight': params['embedding']['weight'],
    'model.norm.weight': params['final_norm']['scale'],
  }
  if 'output' in params:
    state['lm_head.weight'] = params['output']['weight']
  for i in range(layers):
    name = f'model.layers.{i}'
    for kind in ('weight', 'bias'):
      if kind in attention['q']:
        roles = zip('qkv', (attention['q'][kind][i], *attention['kv'][kind][i]), strict=True)
        for role, a in roles:
          shape = (-1, a.shape[-1]) if kind == 'weight' else -1
          state[f'{name}.self_attn.{role}_proj.{kind}'] = a.reshape(shape)
    out = attention['out']['weight'][i]
    state[f'{name}.self_attn.o_proj.weight'] = out.reshape(out.shape[0], -1)
    for role in 'qk':
      if f'{role}_norm' in attention:
        state[f'{name}.self_attn.{role}_norm.weight'] = attention[f'{role}_norm']['scale'][i]
    gate, up = feed_forward['gate_up']['weight'][i]
    state |= {f'{name}.mlp.gate_proj.weight': gate, f'{name}.mlp.up_proj.weight': up}
    state[f'{name}.mlp.down_proj.weight'] = feed_forward['down']['weight'][i]
    state[f'{name}.input_layernorm.weight'] = params['layers']['norm1']['scale'][i]
    state[f'{name}.post_attention_layernorm.weight'] = params['layers']['norm2']['scale'][i]
  return {name: tensor(a) for name, a in state.items()}


@pytest.mark.parametrize('case', CASES)
def test_llama_and_its_kin(case):
  changes, family, fields = CASES[case]
  model = model_of('llama', **(PLAIN | changes))
  params, tokens = params_of(model), tokens_of(model, length=LENGTH)
  config = getattr(transformers, f'{family}Config')(
    **(SHAPE | dict(tie_word_embeddings=False) | fields)
  )
  peer = getattr(transformers, f'{family}ForCausalLM')(config)
  expected = logits_of(peer, llama_weights(params, model.config.layers), tokens)
  assert_close(jax.jit(model.apply)(params, tokens).logits_BxTxV, expected, FLOAT32)


def gpt2_weights(params, layers):
  """Its Conv1D weights are [in, out]."""
  state = {
    'transformer.wte.weight': params['embedding']['weight'],
    'transformer.wpe.weight': params['embedding']['positions'],
    'transformer.ln_f.weight': params['final_norm']['scale'],
    'transformer.ln_f.bias': params['final_norm']['bias'],
  }
  width = params['embedding']['weight'].shape[1]
  for i in range(layers):
    name, p = f'transformer.h.{i}', jax.tree.map(lambda a, i=i: a[i], params['layers'])
    for norm, theirs in (('norm1', 'ln_1'), ('norm2', 'ln_2')):
      state[f'{name}.{theirs}.weight'] = p[norm]['scale']
      state[f'{name}.{theirs}.bias'] = p[norm]['bias']
    linear = {
      'attn.c_attn': (p['attention']['qkv'], (-1, width)),
      'attn.c_proj': (p['attention']['out'], (width, -1)),
      'mlp.c_fc': (p['feed_forward']['up'], (-1, width)),
      'mlp.c_proj': (p['feed_forward']['down'], (width, -1)),
    }
    for theirs, (one, shape) in linear.items():
      state[f'{name}.{theirs}.weight'] = one['weight'].reshape(shape).T
      state[f'{name}.{theirs}.bias'] = one['bias'].reshape(-1)
  return {name: tensor(a) for name, a in state.items()}


def test_gpt2():
  model = model_of('gpt2')
  params, tokens = params_of(model), tokens_of(model, length=LENGTH)
  config = transformers.GPT2Config(vocab_size=23, n_positions=24, n_embd=16, n_layer=2, n_head=2)
  peer = transformers.GPT2LMHeadModel(config)
  expected = logits_of(peer, gpt2_weights(params, model.config.layers), tokens)
  assert_close(jax.jit(model.apply)(params, tokens).logits_BxTxV, expected, FLOAT32)
