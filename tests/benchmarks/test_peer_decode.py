"""The PyTorch peers compute the model that they are compared with; skipped without PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from tests.contract.models import params_of

torch = pytest.importorskip('torch')


@pytest.mark.parametrize('is_static', (False, True))
@pytest.mark.parametrize('name', ('crt', 'transformer'))
def test_the_peer_is_the_same_model(name, is_static):
  from benchmarks import peer_torch_decode

  fields = dict(name=name, vocab_size=23, width=16, heads=2, layers=2)
  model = crt_jax.build(fields | dict(rotary='integer_reversed'))
  params = params_of(model)
  arguments = (fields, 1, 8, 'float32', 'cpu')
  if is_static:
    peer = peer_torch_decode.Compiled(*arguments, compile=lambda function, **_: function)
  else:
    peer = peer_torch_decode.Decoder(*arguments)
  copy_params(peer, params)
  state = model.decode_state(1, 8)
  for token in (3, 1, 4):
    state, expected = model.step(params, state, jnp.array([token]))
    peer.token = torch.tensor([[token]])
    found = []
    peer.head.register_forward_hook(
      lambda module, inputs, output, found=found: found.append(output)
    )
    peer.step()
    np.testing.assert_allclose(found[0][0, -1].numpy(), expected[0], rtol=1e-3, atol=1e-3)


def copy_params(peer, params):
  """Our fused arrays into the peer's separate layers."""
  tensor = lambda a: torch.nn.Parameter(torch.tensor(np.asarray(a)))  # noqa: E731

  def linear(target, weight, bias):
    target.weight, target.bias = tensor(weight), tensor(bias)

  def norm(target, values):
    target.weight, target.bias = tensor(values['scale']), tensor(values['bias'])

  peer.table.weight = tensor(params['embedding']['weight'])
  linear(peer.head, params['output']['weight'], params['output']['bias'])
  norm(peer.norm, params['final_norm'])
  for n, layer in enumerate(peer.block):
    attention = params['layers']['attention']
    for i, target in enumerate((layer.query, layer.key, layer.value)):
      width = attention['qkv']['weight'].shape[-1]
      weight = attention['qkv']['weight'][n, i].reshape(width, width)
      linear(target, weight, attention['qkv']['bias'][n, i].reshape(width))
    weight = attention['out']['weight'][n]
    linear(layer.out, weight.reshape(width, width), attention['out']['bias'][n])
    for target, name in ((layer.up, 'up'), (layer.down, 'down')):
      part = params['layers']['feed_forward'][name]
      linear(target, part['weight'][n], part['bias'][n])
    for target, name in ((layer.norm1, 'norm1'), (layer.norm2, 'norm2')):
      norm(target, {key: value[n] for key, value in params['layers'][name].items()})
  if peer.correction is not None:
    correction = params['correction']
    norm(peer.correction[0], correction['norm'])
    for index, name in ((1, 'up'), (3, 'down')):
      part = correction['feed_forward'][name]
      linear(peer.correction[index], part['weight'], part['bias'])
