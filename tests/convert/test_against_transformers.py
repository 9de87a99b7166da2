"""Folders that `transformers` wrote compute here what they compute there: logits, loss, gradients
and greedy text. Run by `make test-pretrained`; skipped where the packages are missing."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax import exporting
from crt_jax.convert import pretrained
from crt_jax.convert.slots import arrays_of
from crt_jax.training import conversion
from tests.close import assert_close
from tests.contract.models import tokens_of
from tests.convert import folders

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 23  # beyond the window and the positions that llama3 stretches
SHAPE = dict(
  vocab_size=folders.TOKENS,
  hidden_size=36,
  intermediate_size=52,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=2,
  max_position_embeddings=96,
  initializer_range=0.3,
)
LLAMA3 = dict(
  rope_type='llama3',
  factor=8.0,
  low_freq_factor=0.5,
  high_freq_factor=2.0,
  original_max_position_embeddings=9,
)
GPT2 = dict(vocab_size=folders.TOKENS, n_positions=96, n_embd=36, n_layer=3, n_head=6, n_inner=50)
# Class and configuration there.
CASES = {
  'llama': ('Llama', SHAPE | dict(head_dim=10, rms_norm_eps=1e-5)),
  'llama_tied': (
    'Llama',
    SHAPE | dict(tie_word_embeddings=True, rope_parameters=LLAMA3 | dict(rope_theta=5e5)),
  ),
  'llama_linear': (
    'Llama',
    SHAPE
    | dict(num_key_value_heads=6)
    | dict(rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=100.0)),
  ),
  'mistral': ('Mistral', SHAPE | dict(sliding_window=5, head_dim=6)),
  'qwen2': ('Qwen2', SHAPE | dict(tie_word_embeddings=True)),
  'qwen3': ('Qwen3', SHAPE | dict(head_dim=8, num_key_value_heads=1)),
  'gpt2': ('GPT2', GPT2 | dict(initializer_range=0.3)),
}


@pytest.fixture(scope='module', params=CASES)
def both(request, tmp_path_factory):
  """Their model, and the folder that it wrote."""
  folder = tmp_path_factory.mktemp(request.param)
  kind, fields = CASES[request.param]
  torch.manual_seed(7)
  config = getattr(transformers, f'{kind}Config')(**fields)
  head = 'GPT2LMHeadModel' if kind == 'GPT2' else f'{kind}ForCausalLM'
  peer = getattr(transformers, head)(config).eval()
  with torch.no_grad():
    for name, weight in peer.named_parameters():
      if weight.ndim == 1:  # norms and biases begin at ones and zeros
        weight += 0.2 * torch.randn_like(weight)
      assert weight.dtype == torch.float32, name
  peer.save_pretrained(folder)
  folders.write_tokenizer(folder)
  return peer, str(folder)


@contextlib.contextmanager
def in_float64(peer):
  """Their model with 64 bits throughout: norms and angles are made in what it calls float32."""
  with pytest.MonkeyPatch.context() as patch:
    for name in ('float32', 'float'):
      patch.setattr(torch, name, torch.float64)
    patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    ordinary = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
      wide = type(peer)(peer.config).eval()
      wide.load_state_dict(peer.state_dict())
      yield wide
    finally:
      torch.set_default_dtype(ordinary)


def loaded(folder, dtype):
  return conversion.converted(crt_jax.load(folder), dtype=dtype)


def tensor(a):
  return torch.from_numpy(np.array(a)).long()


def test_logits_in_float32(both):
  peer, folder = both
  found = loaded(folder, 'float32')
  tokens = tokens_of(found.model, length=LENGTH)
  with torch.no_grad():
    expected = peer(tensor(tokens)).logits.numpy()
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(found.model.apply)(found.params, tokens).logits_BxTxV
  assert_close(logits, expected, 1e-5)


def test_logits_loss_and_gradients_in_float64(both, float64):
  peer, folder = both
  found = loaded(folder, 'float64')
  tokens = tokens_of(found.model, length=LENGTH)
  targets = tensor(tokens[:, 1:])
  with in_float64(peer) as wide:
    logits = wide(tensor(tokens[:, :-1])).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
  batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:])
  (mine, _), gradients = jax.jit(jax.value_and_grad(found.model.loss, has_aux=True))(
    found.params, batch
  )
  applied = jax.jit(found.model.apply)(found.params, batch['tokens']).logits_BxTxV
  assert_close(applied, logits.detach().numpy(), 1e-10)
  assert_close(mine, loss.item(), 1e-10)
  slots = pretrained.FAMILIES[peer.config.model_type].slots(found.model.config)
  theirs = {name: p.grad.numpy() for name, p in wide.named_parameters()}
  gradients = arrays_of(slots, gradients)
  assert gradients.keys() == theirs.keys()
  for name, gradient in gradients.items():
    assert_close(gradient, theirs[name], 1e-9, name)


def test_greedy_text_of_ragged_prompts(both, float64):
  """50 tokens through the caches, three prompts at once, each theirs alone."""
  peer, folder = both
  found = loaded(folder, 'float64')
  tokens = np.asarray(tokens_of(found.model, batch=3, length=LENGTH))
  prompts = [row[:length].tolist() for row, length in zip(tokens, (3, 11, 23), strict=True)]
  sampling = crt_jax.Sampling(temperature=0)
  texts = crt_jax.generate(
    found.model, found.params, prompts, 50, context=LENGTH + 50, sampling=sampling
  )
  with in_float64(peer) as wide:
    for prompt, text in zip(prompts, texts, strict=True):
      ids = torch.tensor([prompt])
      options = dict(max_new_tokens=50, do_sample=False, pad_token_id=0, eos_token_id=None)
      expected = wide.generate(ids, attention_mask=torch.ones_like(ids), **options)
      assert text == expected[0, len(prompt) :].tolist()


def test_out_again_it_is_the_same_model(both, tmp_path):
  """Its own class, the same logits to the bit, the same tokens."""
  peer, folder = both
  found = crt_jax.load(folder)
  exporting.export(found, tmp_path / 'out', 'huggingface')
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  assert type(again) is type(peer)
  tokens = torch.arange(LENGTH)[None]
  with torch.no_grad():
    assert torch.equal(again(tokens).logits, peer(tokens).logits)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  text = "the word, and  it's long:\n1234 \N{GRINNING FACE}"
  assert tokenizer(text).input_ids == found.tokenizer.encode(text)
  ends = tokenizer.bos_token_id, tokenizer.eos_token_id
  assert ends == (found.tokenizer.bos, found.tokenizer.eos)


def test_what_we_write_opens_there(tmp_path):
  """The names and the layout are theirs: a folder of ours gives the same logits."""
  for case in ('qwen3', 'gpt2'):
    folders.write(tmp_path / case, case)
    found = crt_jax.load(str(tmp_path / case))
    tokens = tokens_of(found.model, length=9)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / case, dtype=torch.float32)
    with torch.no_grad():
      expected = peer(tensor(tokens)).logits.numpy()
    assert_close(jnp.asarray(found.model.apply(found.params, tokens).logits_BxTxV), expected, 1e-5)
