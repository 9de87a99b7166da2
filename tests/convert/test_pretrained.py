"""Other people's folders: what is read is what is there, and what cannot be read is named."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers as hf

import crt_jax
from configs import base
from crt_jax import decoding, exporting, schema
from crt_jax.data import vocabularies
from crt_jax.data.tokenizers import JsonTokenizer
from crt_jax.models.corrections import VARIANTS
from crt_jax.runs import checkpoint
from crt_jax.schema.data import resolve
from crt_jax.training import conversion, finish
from tests.close import FLOAT64, assert_close
from tests.contract.models import CONFIGS, tokens_of
from tests.convert import folders
from tests.training import tiny


@pytest.mark.parametrize('shards', (0, 2))
@pytest.mark.parametrize('case', folders.SETTINGS)
def test_in_and_out_is_the_identity(tmp_path, case, shards):
  params = folders.write(tmp_path, case, shards)
  found = crt_jax.load(str(tmp_path))
  assert (found.step, found.config.model.vocab_size) == (0, folders.TOKENS)
  folders.same_bits(found.params, params)
  settings = folders.SETTINGS[case]
  again = folders.arrays_by_name(settings, found.params)
  folders.same_bits(again, folders.arrays_by_name(settings, params))


def test_numbers_of_16_bits_stay_what_they_are(tmp_path):
  def narrow(arrays):
    return {name: a.astype(ml_dtypes.bfloat16) for name, a in arrays.items()}

  params = folders.write(tmp_path, 'llama', change=narrow)
  expected = jax.tree.map(lambda a: np.asarray(a, ml_dtypes.bfloat16).astype(np.float32), params)
  folders.same_bits(crt_jax.load(str(tmp_path)).params, expected)


def test_a_body_without_head_has_short_names(tmp_path):
  """As GPT-2 was published, with its causal masks beside the weights."""

  def published(arrays):
    short = {name.removeprefix('transformer.'): a for name, a in arrays.items()}
    return short | {'h.0.attn.bias': np.ones((1, 1, 4, 4), np.float32)}

  params = folders.write(tmp_path, 'gpt2', change=published)
  folders.same_bits(crt_jax.load(str(tmp_path)).params, params)


def test_rotary_angles_of_older_and_newer_files():
  llama3 = dict(factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0)
  llama3 |= dict(rope_type='llama3', original_max_position_embeddings=9)
  older = folders.model_of(folders.SETTINGS['llama'] | dict(rope_scaling=llama3))
  newer = dict(rope_theta=None, rope_parameters=llama3 | dict(rope_theta=100.0))
  assert folders.model_of(folders.SETTINGS['llama'] | newer) == older
  config = older.config
  assert (config.rotary_theta, config.rotary_scaling, config.rotary_factor) == (100, 'llama3', 8)
  assert (config.rotary_low, config.rotary_high, config.rotary_positions) == (0.5, 2, 9)


def test_mistral_has_a_window_unless_it_says_null():
  settings = {n: v for n, v in folders.SETTINGS['mistral'].items() if n != 'sliding_window'}
  windows = [
    folders.model_of(settings | given).config.window
    for given in ({}, dict(sliding_window=None), dict(sliding_window=3))
  ]
  assert windows == [4096, 0, 3]


# ---- tokenizers --------------------------------------------------------------------------------


def test_a_folder_is_a_tokenizer(tmp_path):
  folders.write_tokenizer(tmp_path)
  tokenizer = vocabularies.make(resolve(dict(tokenizer=str(tmp_path), separator='eos')), iter(()))
  assert (tokenizer.bos, tokenizer.eos) == (folders.TOKENS - 2, folders.TOKENS - 1)
  assert tokenizer.decode(tokenizer.encode('the word')) == 'the word'
  saved = tmp_path / 'run' / 'tokenizer'
  tokenizer.save(saved)
  for place in (saved, saved.parent):
    config = resolve(dict(tokenizer=str(place)))
    assert vocabularies.make(config, iter(())) == tokenizer
    assert vocabularies.fingerprint(config) == ['tokenizer', tokenizer.hash]


@pytest.mark.parametrize('begins', (False, True))
def test_texts_begin_as_they_do_for_the_owner_of_the_folder(tmp_path, begins):
  folders.write(tmp_path, 'llama')
  definition = hf.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  if begins:  # as of Llama 2 and 3
    ends = [('<298>', 298)]
    definition.post_processor = hf.processors.TemplateProcessing('<298> $A', special_tokens=ends)
    definition.save(str(tmp_path / 'tokenizer.json'))
  found = crt_jax.load(str(tmp_path))
  assert found.config.data.separator == separator_of(begins)
  read = decoding.prompt_tokens(found.tokenizer, found.config.data.separator, 'the word')
  assert read == [298] * begins + found.tokenizer.encode('the word')
  exporting.export(found, tmp_path / 'out', 'huggingface')
  again = crt_jax.load(str(tmp_path / 'out'))
  assert (again.tokenizer, again.config.data.separator) == (found.tokenizer, separator_of(begins))


@pytest.mark.parametrize('tokenizer', (folders.BYTES, None))
@pytest.mark.parametrize('begins', (False, True))
def test_a_run_says_how_its_texts_begin(tmp_path, tokenizer, begins):
  """Whatever its tokenizer says by itself, and also to other readers of tokenizer.json."""
  if tokenizer is None:
    folders.write_tokenizer(tmp_path)
    whole = hf.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    adds = hf.processors.TemplateProcessing('<298> $A', special_tokens=[('<298>', 298)])
    whole.post_processor = adds
    tokenizer = JsonTokenizer(whole.to_str(), 298, 299)
  run = folders.trained(CONFIGS['crt'], tokenizer)
  run.config.data.separator = separator_of(begins)
  exporting.export(run, tmp_path / 'out', 'huggingface')
  assert crt_jax.load(str(tmp_path / 'out')).config.data.separator == separator_of(begins)
  theirs = hf.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert theirs.encode('word').ids == [tokenizer.bos] * begins + tokenizer.encode('word')


def separator_of(begins):
  return 'bos_eos' if begins else 'none'


def test_a_tokenizer_that_transformers_wrote_again_is_read(tmp_path):
  folders.write(tmp_path, 'llama')
  found = crt_jax.load(str(tmp_path))
  exporting.export(found, tmp_path / 'out', 'huggingface')
  hf.Tokenizer.from_file(str(tmp_path / 'tokenizer.json')).save(
    str(tmp_path / 'out' / 'tokenizer.json'), pretty=False
  )
  again = crt_jax.load(str(tmp_path / 'out')).tokenizer
  assert (again.bos, again.eos) == (found.tokenizer.bos, found.tokenizer.eos)
  assert again.encode('the word') == found.tokenizer.encode('the word')


def test_a_folder_without_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match='holds no tokenizer.json; open its tokenizer with'):
    vocabularies.make(resolve(dict(tokenizer=str(tmp_path))), iter(()))


# ---- what becomes of it ------------------------------------------------------------------------


def around(folder):
  """A config of little text, and a model's folder in it."""
  (folder / 'text.txt').write_text('And the word was long. ' * 99)
  config = schema.experiment(base.transformer_model(layers=1, width=8, heads=1))
  config.data.update(corpus='files', files=str(folder / 'text.txt'))
  config.data.update(sequence_length=8, batch_size=8, tokenizer=str(folder / 'theirs'))
  config.eval.update(batches=1, whole=False, during_training_batches=1)
  config.sample.num_tokens = 4
  return config


@pytest.mark.parametrize('case, correction', [('tied', 'sa'), ('llama', 'add'), ('gpt2', 'add')])
def test_a_silent_correction_keeps_the_function(tmp_path, float64, case, correction):
  folders.write(tmp_path, case)
  kept = (0, 2) + (1,) * (correction == 'sa')  # which attends in place of the last layer
  whole = crt_jax.load(str(tmp_path))
  short = conversion.converted(whole, kept[:2], dtype='float64')
  assert short.model.config.layers == 2 and jax.tree.leaves(short.params)[0].dtype == 'float64'
  tokens = tokens_of(short.model, length=5)
  expected = jax.jit(short.model.apply)(short.params, tokens).logits_BxTxV
  new = conversion.converted(crt_jax.load(str(tmp_path)), kept, correction, 'float64')
  assert new.model.config.layers == 2 and VARIANTS[correction].can_be_silent
  apply = jax.jit(new.model.apply, static_argnames='depth')
  found = [apply(new.params, tokens, depth=k).logits_BxTxV for k in (1, 4)]
  found.append(new.model.sequential(new.params, tokens))
  for logits in found:
    assert_close(logits, expected, FLOAT64 / 100)


def test_it_is_a_run_at_step_0(tmp_path, monkeypatch):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  folders.write(tmp_path / 'theirs', 'llama')
  trained = crt_jax.load(str(tmp_path / 'theirs'))
  new = conversion.converted(trained, (0, 2), 'add', around=around(tmp_path))
  run = str(tmp_path / 'run')
  conversion.begin_run(run, new)
  assert [path.name for path in tmp_path.glob('run*')] == ['run']
  found = crt_jax.load(run)
  folders.same_bits(found.params, new.params)
  assert found.tokenizer == trained.tokenizer and found.config.model.name == 'crt'
  finish.evaluate_checkpoint(run)
  record = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert record['step'] == 0 and record['results']['sampled']
  again = conversion.converted(found, dtype='bfloat16')  # a run is a source too
  conversion.begin_run(str(tmp_path / 'again'), again)
  assert checkpoint.load_params(str(tmp_path / 'again'))[0].model.dtype == 'bfloat16'


@pytest.mark.slow
def test_training_begins_with_it(tmp_path, monkeypatch):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  folders.write(tmp_path / 'theirs', 'gpt2')
  new = conversion.converted(
    crt_jax.load(str(tmp_path / 'theirs')), correction='add', around=around(tmp_path)
  )
  conversion.begin_run(str(tmp_path / 'run'), new)
  config = around(tmp_path)
  config.model = new.config.model
  config.data.tokenizer = str(tmp_path / 'run')
  config.train.update(steps=2, init_from=str(tmp_path / 'run'))
  tiny.train(config, str(tmp_path / 'trained'))
  assert crt_jax.load(str(tmp_path / 'trained')).step == 2


def test_nothing_is_left_of_a_run_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  folders.write(tmp_path / 'theirs', 'llama')
  new = conversion.converted(crt_jax.load(str(tmp_path / 'theirs')), around=around(tmp_path))

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoint, 'check_space', full)
  with pytest.raises(OSError, match='No space left'):
    conversion.begin_run(str(tmp_path / 'run'), new)
  assert not list(tmp_path.glob('run*'))


# ---- what cannot be read -----------------------------------------------------------------------


def without(name):
  return lambda arrays: {other: a for other, a in arrays.items() if other != name}


@pytest.mark.parametrize(
  'case, changes, change, message',
  (
    (
      'llama',
      dict(model_type='olmo2'),
      None,
      "'olmo2', which needs norms behind .*; there are lla",
    ),
    ('llama', dict(model_type='t5'), None, "model_type='t5' is not implemented; there are llama"),
    ('llama', dict(mlp_bias=True), None, 'mlp_bias=True is not implemented here; False is'),
    ('llama', dict(attention_bias=True), None, 'attention_bias=True is not'),
    ('llama', dict(hidden_act='gelu'), None, "hidden_act='gelu' is not implemented here; 'silu'"),
    ('llama', dict(rope_scaling=dict(type='yarn')), None, "angles: rope_type='yarn' is not impl"),
    ('llama', dict(rope_scaling=dict(type='linear')), None, 'rotary angles: factor is missing'),
    (
      'llama',
      dict(rope_scaling=dict(type='linear', factor=4), rope_parameters=dict(rope_theta=100.0)),
      None,
      'config.json holds rope_parameters and rope_scaling; keep the one',
    ),
    (
      'llama',
      dict(rope_parameters=dict(full_attention=dict(rope_theta=9.0))),
      None,
      r'angles that differ by layer \(full_attention\) are not implemented',
    ),
    ('llama', dict(hidden_size=None), None, 'config.json: hidden_size is missing'),
    ('llama', dict(num_key_value_heads=3), None, 'heads=4 must be divisible by model.kv_heads=3'),
    ('llama', dict(vocab_size=299), None, 'has 300 tokens and its model 299; they do not belong'),
    ('gpt2', dict(layer_norm_epsilon=1e-6), None, 'layer_norm_epsilon=1e-06 is not implemented'),
    ('llama', {}, without('model.norm.weight'), 'missing arrays: model.norm.weight'),
    ('llama', {}, lambda a: a | {'x': np.ones(1)}, 'unexpected arrays: x'),
    (
      'llama',
      {},
      lambda arrays: arrays | {'model.norm.weight': np.ones(9, np.float32)},
      r"array 'model.norm.weight' has shape \(9,\); the model needs \(16,\)",
    ),
    (
      'tied',
      {},
      lambda arrays: arrays | {'lm_head.weight': np.ones((300, 16), np.float32)},
      "'lm_head.weight' differs from the one that it is tied to",
    ),
  ),
)
def test_what_does_not_fit_is_named(tmp_path, case, changes, change, message):
  folders.write(tmp_path, case, change=change or (lambda arrays: arrays))
  settings = {n: v for n, v in (folders.SETTINGS[case] | changes).items() if v is not None}
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.load(str(tmp_path))
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def truncate(folder, name, size=-1):
  (folder / name).write_bytes((folder / name).read_bytes()[:size])


def rename(folder, name, new):
  (folder / name).rename(folder / new)


@pytest.mark.parametrize(
  'shards, damage, message',
  (
    (0, lambda f: truncate(f, 'model.safetensors'), 'model.safetensors cannot be read .*; fetch'),
    (0, lambda f: truncate(f, 'model.safetensors', 3), 'model.safetensors cannot be read'),
    (0, lambda f: truncate(f, 'config.json', 40), 'config.json is not JSON'),
    (0, lambda f: (f / 'config.json').unlink(), 'holds no config.json: it is neither a run nor'),
    (0, lambda f: (f / 'tokenizer.json').unlink(), 'holds no tokenizer.json'),
    (0, lambda f: (f / 'model.safetensors').unlink(), 'holds neither model.safetensors nor'),
    (
      0,
      lambda f: rename(f, 'model.safetensors', 'pytorch_model.bin'),
      'holds pytorch_model.bin and no model.safetensors; a pickle may run any code',
    ),
    (
      2,
      lambda f: (f / 'model-1.safetensors').unlink(),
      'index.json names model-1.safetensors, which is missing',
    ),
    (
      2,
      lambda f: rename(f, 'model-0.safetensors', 'model-1.safetensors'),
      'index.json names model-0.safetensors, which is missing',
    ),
    (2, lambda f: truncate(f, 'model.safetensors.index.json', 9), 'index.json is not JSON'),
  ),
)
def test_what_is_damaged_is_named(tmp_path, shards, damage, message):
  folders.write(tmp_path, 'llama', shards)
  damage(tmp_path)
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.load(str(tmp_path))
  assert '\n' not in str(error.value)


def test_an_array_that_the_index_promises_is_missed(tmp_path):
  folders.write(tmp_path, 'llama', shards=2)
  file = pathlib.Path(tmp_path / 'model.safetensors.index.json')
  names = json.loads(file.read_text())['weight_map'] | {'more': 'model-0.safetensors'}
  file.write_text(json.dumps(dict(weight_map=names)))
  with pytest.raises(ValueError, match="model-0.safetensors: array 'more', which .* is missing"):
    crt_jax.load(str(tmp_path))
