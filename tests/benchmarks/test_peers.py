"""The PyTorch peers of training compute the model that they are compared with; skipped without
PyTorch."""

import jax
import numpy as np
import pytest

import crt_jax
from crt_jax.convert.reference import export_arrays
from tests.contract.models import params_of

torch = pytest.importorskip('torch')

# Names of cart.md's reference arrays, as the peer has them.
RENAMED = (
  ('embedding.', 'table.'),
  ('kv_proj.', 'anchor.'),
  ('core.attn.q_proj', 'core.query'),
  ('attn.q_proj', 'query'),
  ('attn.o_proj', 'out'),
  ('attn.', 'keys_values.'),
  ('kv_down', 'down'),
  ('k_up', 'key_up'),
  ('v_up', 'value_up'),
  ('ffn.', ''),
  ('hyper.weights', 'blend'),
  ('lti.a_param', 'gate'),
  ('lie.proj', 'loop_code'),
)


def renamed(name: str) -> str:
  for old, new in RENAMED:
    name = name.replace(old, new)
  return name


def test_the_peer_of_a_cart_has_the_same_loss_and_gradient():
  from benchmarks import peer_torch_cart

  fields = dict(vocab_size=23, width=128, prelude_layers=2, loops=3)
  config = dict(fields, name='cart')
  model = crt_jax.build(config)
  params = params_of(model)
  tokens, targets = np.random.default_rng(0).integers(0, 23, (2, 2, 9))
  weights = {renamed(name): a for name, a in export_arrays(config, params).items()}
  batch = dict(tokens=tokens.astype(np.int32), targets=targets.astype(np.int32))
  (expected, _), gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
  gradient = {renamed(name): a for name, a in export_arrays(config, gradient).items()}
  for fused in (False, True):
    peer = peer_torch_cart.CART(**fields, length=9, fused=fused)
    buffers = dict(peer.named_buffers())
    peer.load_state_dict({k: torch.tensor(np.asarray(a)) for k, a in weights.items()} | buffers)
    loss = peer(torch.tensor(tokens), torch.tensor(targets))
    loss.backward()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
    for name, weight in peer.named_parameters():
      error = np.abs(weight.grad.numpy() - gradient[name]).max() / np.abs(gradient[name]).max()
      assert error < 1e-3, name
