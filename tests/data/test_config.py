import pytest
from ml_collections import ConfigDict

from crt_jax.data import DataConfig, resolve


def test_missing_fields_take_their_defaults_and_references_are_resolved():
  config = ConfigDict({'batch_size': 8, 'vocab_size': 300})
  config.sequence_length = config.get_ref('batch_size') * 4
  resolved = resolve(config.lock())
  assert resolved == DataConfig(batch_size=8, vocab_size=300, sequence_length=32)
  assert resolve(resolved) == resolved


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('corpus', 'moby_dic', ["data.corpus='moby_dic'", "did you mean 'moby_dick'"]),
    ('corpus', 'tfds:', ['data.corpus', 'tfds:<name>']),
    ('corpus', 'files', ['data.files is empty']),
    ('tokenizer', 'byte', ["data.tokenizer='byte'", "did you mean 'bytes'"]),
    ('tokenizer', '/nowhere/tokenizer.json', ['data.tokenizer', 'neither a file']),
    ('sampling', 'shufled', ["data.sampling='shufled'", "did you mean 'shuffled'"]),
    ('split', 'contigous', ["did you mean 'contiguous'"]),
    ('separator', 'bos-eos', ["did you mean 'bos_eos'"]),
    ('bpe_recipe', 'paper', ['one of default, crt']),
    ('batchsize', 8, ['data.batchsize is not a field', "did you mean 'batch_size'"]),
    ('batch_size', 0, ['data.batch_size=0 must be at least 1']),
    ('sequence_length', '16', ["data.sequence_length='16' must be int"]),
    ('sequence_length', True, ['must be int, not bool']),
    ('validation_fraction', 1, ['data.validation_fraction=1.0 must lie between']),
  ],
)
def test_a_wrong_value_is_one_line_that_names_the_field(field, value, words):
  with pytest.raises(ValueError) as error:
    resolve({field: value})
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_the_cache_folder_is_configured_or_from_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path))
  assert DataConfig().cache_root == tmp_path
  assert DataConfig(cache_dir='/elsewhere').cache_root.as_posix() == '/elsewhere'
  monkeypatch.delenv('CRT_JAX_CACHE')
  assert DataConfig().cache_root.as_posix().endswith('.cache/crt_jax')
