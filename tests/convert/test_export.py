"""What is written for others comes back to the bit, and is written whole or not at all."""

import json

import jax
import pytest
import tokenizers
from absl import flags
from absl.testing import flagsaver
from safetensors import SafetensorError

import crt_jax
from crt_jax import exporting
from crt_jax.cli import Mistake, export
from crt_jax.convert import FORMATS
from tests.contract.models import CONFIGS
from tests.convert import folders
from tests.convert.folders import BYTES, trained


def back(given, folder, form):
  exporting.export(given, folder, form)
  return crt_jax.load(str(folder))


@pytest.mark.parametrize('case', folders.SETTINGS)
def test_in_out_and_in_is_the_identity(tmp_path, case):
  folders.write(tmp_path / 'theirs', case)
  given = crt_jax.load(str(tmp_path / 'theirs'))
  for form in FORMATS:
    found = back(given, tmp_path / form, form)
    folders.same_bits(found.params, given.params)
    assert (found.model, found.tokenizer) == (given.model, given.tokenizer)
    assert found.config.data.sequence_length == given.config.data.sequence_length
  settings = json.loads((tmp_path / 'huggingface' / 'config.json').read_text())
  assert settings['model_type'] == folders.SETTINGS[case]['model_type']


@pytest.mark.parametrize(
  'case, form',
  (
    ('roformer_head_ffn', 'safetensors'),
    ('cart_self_unshared', 'safetensors'),
    ('cart_self_unshared', 'huggingface'),
    ('crt_cart_per_loop', 'huggingface'),
    ('crt_gpt2', 'huggingface'),
  ),
)
def test_out_and_in_is_the_identity(tmp_path, case, form):
  given = trained(CONFIGS[case])
  found = back(given, tmp_path / 'out', form)
  folders.same_bits(found.params, given.params)
  assert found.model.config == crt_jax.build(given.config.model, jax.devices()[0]).config
  assert found.tokenizer == BYTES


def test_bytes_are_a_tokenizer_elsewhere(tmp_path):
  (tmp_path / 'out.partial').mkdir()  # of somebody
  exporting.export(
    trained(CONFIGS['llama'] | dict(qkv_bias=False)), tmp_path / 'out', 'huggingface'
  )
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  text = ''.join(map(chr, range(1, 300))) + ' e\u0301 \N{GRINNING FACE}\r\n'
  assert theirs.encode(text).ids == BYTES.encode(text)
  assert theirs.decode(BYTES.encode(text)) == text
  assert [theirs.id_to_token(i) for i in (256, 257)] == ['<bos>', '<eos>']
  settings = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert (settings['bos_token_id'], settings['eos_token_id']) == (256, 257)
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'out.partial'}


@pytest.mark.parametrize(
  'fields, message',
  (
    (CONFIGS['llama'], 'no model of transformers has two of them; use --format=safetensors'),
    (CONFIGS['roformer'], "'transformer' of style 'roformer' has no class in transformers; use"),
    (
      CONFIGS['crt'] | dict(cumulative=True),
      'generation in transformers needs the sequential form',
    ),
    (CONFIGS['gpt2'] | dict(window=3), 'model.window=3: the GPT-2 of transformers attends to all'),
  ),
)
def test_what_has_no_class_there_is_named(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    exporting.export(trained(fields), tmp_path / 'out', 'huggingface')
  assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  def full(*_, **options):
    raise SafetensorError('I/O error: No space left on device (os error 28)')

  monkeypatch.setattr(exporting, 'save_file', full)
  with pytest.raises(OSError, match='model.safetensors cannot be written .*No space left'):
    exporting.export(trained(CONFIGS['gpt2']), tmp_path / 'out', 'huggingface')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'given, message',
  (
    (dict(workdir='run', output=None), '--output is missing, as in --output=models/mine'),
    (dict(workdir='run', output='.'), '--output=. is there already; choose a new folder'),
  ),
)
def test_mistakes(given, message):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**given), pytest.raises(Mistake, match=message):
    export.main([])


def test_fields_that_make_no_model_are_named(tmp_path):
  exporting.export(trained(CONFIGS['cart']), tmp_path / 'out', 'safetensors')
  file = tmp_path / 'out' / 'config.json'
  for changed, message in (
    (dict(model='cart'), "model='cart' must be an object with name"),
    (dict(model=dict(name='cart')), 'must be an object with name, vocab_size'),
    (dict(model=dict(name='card', vocab_size=9)), "model.name='card'"),
    (dict(model=dict(name='cart', vocab_size=258, width=9)), 'model.width=9'),
  ):
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(ValueError, match=message) as error:
      crt_jax.load(str(tmp_path / 'out'))
    assert '\n' not in str(error.value)
