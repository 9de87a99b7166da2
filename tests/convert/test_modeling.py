"""A CRT or a CART that is written for `transformers` computes there what it computes here: logits,
greedy text, loss, gradients. Run by `make test-pretrained`; skipped where the packages are missing.
"""

import dataclasses

import jax
import numpy as np
import pytest

import crt_jax
from crt_jax import exporting
from crt_jax.convert import modeling
from crt_jax.convert.slots import arrays_of
from tests.close import assert_close
from tests.contract.models import CONFIGS, tokens_of
from tests.convert.test_export import trained

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 11
_CRT = CONFIGS['crt']
CASES = {name: CONFIGS[name] for name in CONFIGS if name.startswith(('crt', 'cart'))}
CASES = {name: c for name, c in CASES.items() if c['name'] in ('crt', 'cart')} | {
  f'crt_{kind}': _CRT | dict(correction=kind)
  for kind in (
    *('stateless', 'token_blind', 'concat', 'block_head', 'nosub', 'delta_ffn', 'delta_ffn_add'),
    *('tied', 'pure', 'tied_pure'),
  )
}
CASES['crt_llama_tied_pure'] = CASES['crt_llama'] | dict(correction='tied_pure')
CASES['crt_corrected'] = _CRT | dict(start='corrected')


@pytest.fixture(scope='module', params=CASES)
def both(request, tmp_path_factory):
  """Our model and, opened from the folder that was written, theirs."""
  given = trained(CASES[request.param])
  folder = tmp_path_factory.mktemp(request.param) / 'out'
  exporting.export(given, folder, 'huggingface')
  peer = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
  assert type(peer).__name__ == 'CRTJaxForCausalLM'
  return given, peer.eval(), folder


def tensor(a):
  return torch.from_numpy(np.array(a)).long()


def test_logits(both):
  given, peer, _ = both
  model, tokens = given.model, tokens_of(given.model, length=LENGTH)
  depths = [None, 1, 4] if model.recurs_along_sequence else [None, 1]
  with jax.default_matmul_precision('highest'), torch.no_grad():
    for depth in depths:
      if depth is None:
        expected = jax.jit(model.sequential)(given.params, tokens)
      else:
        apply = jax.jit(model.apply, static_argnames='depth')
        expected = apply(given.params, tokens, depth=depth).logits_BxTxV
      assert_close(peer(tensor(tokens), depth=depth).logits.numpy(), expected, 1e-5, depth)


def test_greedy_text_of_ragged_prompts(both):
  """Padding on the left leaves no trace, and the cache gives what the whole text gives."""
  given, peer, folder = both
  longest = given.model.max_positions or 40
  count = longest - LENGTH
  tokens = np.asarray(tokens_of(given.model, batch=3, length=LENGTH))
  lengths = (3, 6, LENGTH)
  prompts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
  greedy = crt_jax.Sampling(temperature=0)
  texts = crt_jax.generate(
    given.model, given.params, prompts, count, context=longest, sampling=greedy
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder, trust_remote_code=True, padding_side='left'
  )
  tokenizer.pad_token = tokenizer.eos_token
  padded = tokenizer.pad(dict(input_ids=prompts), return_tensors='pt')
  options = dict(max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
  found = peer.generate(**padded, **options)
  assert found[:, LENGTH:].tolist() == texts
  again = peer.generate(**padded, **options, use_cache=False)
  assert again.tolist() == found.tolist()
  beams = peer.generate(**padded, **options, num_beams=2)
  assert beams.shape == found.shape


def test_loss_and_gradients(both):
  given, peer, _ = both
  weight = dict(convergence_weight=0.3) if given.model.recurs_along_sequence else {}
  model = crt_jax.build(given.config.model.to_dict() | weight)
  vars(peer.c).update(weight)
  tokens = np.asarray(tokens_of(model, length=LENGTH + 1))
  batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:])
  with jax.default_matmul_precision('highest'):
    value_and_grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    (expected, _), gradients = value_and_grad(given.params, batch)
  peer.train().zero_grad()
  targets = tensor(batch['targets'])
  loss = peer(tensor(batch['tokens']), labels=targets, shift_labels=targets).loss
  loss.backward()
  peer.eval()
  assert_close(loss.item(), expected, 1e-5)
  theirs = {name: p.grad for name, p in peer.named_parameters()}
  gradients = arrays_of(modeling.slots(model.config), gradients)
  assert gradients.keys() == theirs.keys()
  for name, gradient in gradients.items():
    found = theirs[name]
    found = np.zeros_like(gradient) if found is None else found.numpy()
    assert_close(found, gradient, 1e-4, name)


def test_what_was_trained_there_comes_back(both, tmp_path):
  given, peer, _ = both
  with torch.no_grad():
    for parameter in peer.parameters():
      parameter.mul_(0.5)
  peer.save_pretrained(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(both[2], trust_remote_code=True)
  tokenizer.save_pretrained(tmp_path)
  with torch.no_grad():
    for parameter in peer.parameters():
      parameter.mul_(2)
  found = crt_jax.load(str(tmp_path))
  assert found.model.config == dataclasses.replace(given.model.config)
  halves = jax.tree.map(lambda a: np.asarray(a) / 2, given.params)
  jax.tree.map(np.testing.assert_array_equal, found.params, halves)
