"""A CRT or a CART that is written for `transformers` computes there what it computes here: logits,
greedy text, loss, gradients. Run by `make test-pretrained`; skipped where the packages are missing.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import crt_jax
from crt_jax import exporting
from crt_jax.convert import modeling
from crt_jax.convert.slots import arrays_of
from crt_jax.models.device_defaults import DECIDED
from tests.close import assert_close
from tests.contract.models import CONFIGS, exact_depth, params_of, tokens_of
from tests.convert.folders import trained

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 7
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


@pytest.fixture(params=CASES)
def both(request, tmp_path, float64):
  """Our model and, opened from the folder that was written, theirs; in float64, as weights here
  are so large that errors grow from pass to pass."""
  fields = CASES[request.param] | dict(dtype='float64')
  return opened(trained(fields, make=functools.partial(params_of, dtype='float64')), tmp_path)


def opened(given, tmp_path):
  folder = tmp_path / 'out'
  exporting.export(given, folder, 'huggingface')
  peer = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
  assert type(peer).__name__ == 'CRTJaxForCausalLM'
  return given, peer.eval(), folder


def tensor(a):
  return torch.from_numpy(np.array(a)).long()


def compare_logits(given, peer, tolerance):
  """Behind T + 1 passes a CRT is exact, so these and the recurrence have one result."""
  model, tokens = given.model, tokens_of(given.model, length=LENGTH)
  depth = exact_depth(model, LENGTH)
  expected = jax.jit(functools.partial(model.apply, depth=depth))(given.params, tokens)
  for form in {None, depth}:
    with torch.no_grad():
      found = peer(tensor(tokens), depth=form).logits.numpy()
    assert_close(found, expected.logits_BxTxV, tolerance, form)


def test_logits(both):
  given, peer, _ = both
  compare_logits(given, peer, 1e-10)


@pytest.mark.parametrize('case', ('crt_llama', 'cart'))
def test_logits_in_float32(tmp_path, case):
  """Of parameters as they are drawn for training."""
  given, peer, _ = opened(
    trained(CONFIGS[case], make=lambda model: jax.jit(model.init)(jax.random.key(0))), tmp_path
  )
  with jax.default_matmul_precision('highest'):
    compare_logits(given, peer, 1e-5)


@pytest.mark.parametrize(
  'both',
  ('crt', 'crt_sa', 'crt_px', 'crt_windowed', 'crt_gpt2', 'crt_cart_per_loop', 'cart'),
  indirect=True,
)
def test_greedy_text_of_ragged_prompts(both):
  """Padding on the left leaves no trace, and the cache gives what the whole text gives."""
  given, peer, folder = both
  count, longest = 17, 17 + LENGTH
  tokens = np.asarray(tokens_of(given.model, batch=3, length=LENGTH))
  lengths = (2, 4, LENGTH)
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
  options |= dict(num_beams=2, max_new_tokens=6)
  beams = [peer.generate(**padded, **options, use_cache=kept) for kept in (True, False)]
  assert beams[0].tolist() == beams[1].tolist()


@pytest.mark.parametrize('both', ('crt_sa', 'cart_per_loop'), indirect=True)
def test_a_cache_can_be_cropped(both):
  """As assisted generation does with what it rejects."""
  given, peer, _ = both
  tokens = tensor(tokens_of(given.model, length=LENGTH))
  with torch.no_grad():
    whole = peer(tokens)
    cache = next(value for name, value in whole.items() if name != 'logits')
    cache.crop(3 - LENGTH)
    again = peer(tokens[:, 3:], past_key_values=cache).logits
  assert_close(again.numpy(), whole.logits[:, 3:].numpy(), 1e-10)


@pytest.mark.parametrize(
  'both', ('crt', 'crt_llama', 'crt_concat', 'crt_tied_pure', 'cart_self_unshared'), indirect=True
)
def test_loss_and_gradients(both):
  given, peer, _ = both
  weight = dict(convergence_weight=0.3) if given.model.recurs_along_sequence else {}
  model = crt_jax.build(given.config.model.to_dict() | weight)
  vars(peer.c).update(weight)
  tokens = np.asarray(tokens_of(model, length=LENGTH + 1))
  batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:])
  value_and_grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
  (expected, _), gradients = value_and_grad(given.params, batch)
  peer.train().zero_grad()
  targets = tensor(batch['targets'])
  loss = peer(tensor(batch['tokens']), labels=targets, shift_labels=targets).loss
  loss.backward()
  assert_close(loss.item(), expected, 1e-6)  # transformers makes it of float32 logits
  theirs = {name: p.grad for name, p in peer.named_parameters()}
  gradients = arrays_of(modeling.slots(model.config), gradients)
  assert gradients.keys() == theirs.keys()
  for name, gradient in gradients.items():
    found = theirs[name]
    found = np.zeros_like(gradient) if found is None else found.numpy()
    assert_close(found, gradient, 1e-5, name)


@pytest.mark.parametrize('both', ('crt',), indirect=True)
def test_generation_is_exact_unless_asked(both):
  given, peer, _ = both
  tokens = tensor(tokens_of(given.model, length=LENGTH))
  options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
  exact = peer.generate(tokens, **options)
  assert torch.equal(peer.train().generate(tokens, **options), exact)
  peer.eval()
  many = peer.generate(tokens, **options, depth=LENGTH + 5, use_cache=False)
  assert torch.equal(many, exact)
  with pytest.raises(ValueError, match='keep nothing: leave out depth, or set use_cache=False'):
    peer.generate(tokens, **options, depth=2)


@pytest.mark.parametrize('case', ('crt', 'cart'))
def test_it_trains_with_dropout_at_a_drawn_depth(tmp_path, case):
  least = dict(depth_min=2) if case == 'crt' else dict(loops_min=1, backprop_loops=2)
  fields = CONFIGS[case] | least | dict(dropout=0.1)
  init = lambda model: jax.jit(model.init)(jax.random.key(0))  # noqa: E731
  given, peer, _ = opened(trained(fields, make=init), tmp_path)
  torch.manual_seed(7)
  tokens = tensor(tokens_of(given.model, batch=4, length=LENGTH))
  optimizer = torch.optim.AdamW(peer.train().parameters(), 1e-2)
  losses = []
  for _ in range(12):
    losses.append(peer(tokens, labels=tokens).loss)
    losses[-1].backward()
    optimizer.step()
    optimizer.zero_grad()
  assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize('case', ('crt', 'cart'))
def test_what_was_trained_there_comes_back(tmp_path, case):
  given, peer, folder = opened(trained(CONFIGS[case]), tmp_path)
  with torch.no_grad():
    for parameter in peer.parameters():
      parameter.mul_(0.5)
  peer.save_pretrained(tmp_path / 'again')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
  tokenizer.save_pretrained(tmp_path / 'again')
  found = crt_jax.load(str(tmp_path / 'again'))
  decided = {name: getattr(found.model.config, name) for name in DECIDED}  # for this machine
  assert found.model.config == dataclasses.replace(given.model.config, **decided)
  halves = jax.tree.map(lambda a: np.asarray(a) / 2, given.params)
  jax.tree.map(np.testing.assert_array_equal, found.params, halves)
