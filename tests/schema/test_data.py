import pwd

import pytest
from ml_collections import ConfigDict

from crt_jax.data import DataConfig, resolve
from crt_jax.data.corpora import open_corpus


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
    ('tokenizer', '/nowhere/tokenizer', ['data.tokenizer', 'neither a file']),
    ('sampling', 'shufled', ["data.sampling='shufled'", "did you mean 'shuffled'"]),
    ('split', 'contigous', ["did you mean 'contiguous'"]),
    ('separator', 'bos-eos', ["did you mean 'bos_eos'"]),
    ('bpe_recipe', 'paper', ["data.bpe_recipe='paper' must be one of 'default', 'crt'"]),
    ('batchsize', 8, ['data.batchsize is no field', "did you mean 'batch_size'"]),
    ('batch_size', 0, ['data.batch_size=0 must be at least 1']),
    ('sequence_length', '16', ["data.sequence_length='16' must be a whole number"]),
    ('sequence_length', True, ['must be a whole number (int), not bool']),
    ('chunk_tokens', '9', ["data.chunk_tokens='9' must be a whole number"]),
    ('corpus', 'mixtur', ["did you mean 'mixture'"]),
    ('validation_files', 'a', ["read only where data.corpus is 'files'"]),
    ('files', '*.txt', ["data.files='*.txt'", "data.corpus='moby_dick'; set data.corpus, or"]),
    ('text_field', 'body', ["read only where data.corpus is 'files' or 'tfds'"]),
    ('tfds_dir', '/tfds', ["read only where data.corpus is 'tfds'"]),
    ('validation_fraction', 1, ['data.validation_fraction=1.0 must be below 1']),
  ],
)
def test_a_wrong_value_is_one_line_that_names_the_field(field, value, words):
  with pytest.raises(ValueError) as error:
    resolve({field: value})
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


MIXTURE = {
  'corpus': 'mixture',
  'sources': {'wiki': {'files': '/texts/*.txt', 'max_tokens': 9}, 'tiny': {'corpus': 'sotu'}},
  'interleave': 'wiki:3, tiny:4',
}


def test_a_source_has_its_own_fields_and_the_rest_of_the_mixture():
  config = resolve(ConfigDict({**MIXTURE, 'separator': 'eos'}))
  assert resolve(config) == config
  assert list(config.pattern.items()) == [('wiki', 3), ('tiny', 4)]
  alone = {'files': '/texts/*.txt', 'corpus': 'files', 'separator': 'eos'}
  assert config.of_source('wiki') == DataConfig(**alone)
  assert config.of_source('tiny') == DataConfig(corpus='sotu', separator='eos')


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'sources': {}}, 'data.sources is empty'),
    ({'sources': 'wiki'}, "data.sources='wiki' must be a mapping"),
    ({'sources': {'wiki': {'file': ''}}}, "data.sources.wiki.file is no .*mean 'files'"),
    ({'sources': {'wiki': {'files': 3}}}, 'data.sources.wiki.files=3 must be text'),
    ({'sources': {'wiki': {}}, 'interleave': 'wiki:1'}, 'data.sources.wiki.files is empty'),
    ({'interleave': 'wiki:3, tiny'}, "data.interleave entry 'tiny' must read 'name:chunks'"),
    ({'interleave': 'wiki:3, tiny:0'}, "data.interleave entry 'tiny:0' must read"),
    ({'interleave': ''}, "data.interleave entry '' must read"),
    ({'interleave': 'wiki:3, tny:1'}, "data.interleave names 'tny', .*did you mean 'tiny'"),
    ({'interleave': 'wiki:3'}, 'data.interleave=.* must name each of wiki, tiny once'),
    ({'interleave': 'wiki:3, tiny:1, wiki:1'}, 'must name each of wiki, tiny once'),
    ({'chunk_tokens': 0}, 'data.chunk_tokens=0 must be at least 1'),
    (
      {'sources': {'wiki': {'corpus': 'mixture'}}, 'interleave': 'wiki:1'},
      "data.sources.wiki.corpus='mixture' is unknown",
    ),
    (
      {'sources': {'wiki': {'corpus': 'sotu', 'max_tokens': -1}}, 'interleave': 'wiki:1'},
      'data.sources.wiki.max_tokens=-1 must be 0',
    ),
    (
      {'sources': {'wiki': {'corpus': 'sotu', 'validation_files': 'a'}}, 'interleave': 'wiki:1'},
      "data.sources.wiki.validation_files='a' is read only where",
    ),
    (
      {'sources': {'wiki': {'corpus': 'tokens', 'files': 'a.bin'}}, 'interleave': 'wiki:1'}
      | {'tokenizer': 'gpt2', 'separator': 'eos'},
      "data.separator='eos': nothing is put between the documents of data.corpus='tokens'",
    ),
    ({'files': 'a.txt'}, "data.files='a.txt' is read only where data.sources.NAME.corpus is 'fil"),
    ({'tfds_dir': '/tfds'}, "data.tfds_dir='/tfds' is read only where data.sources.NAME.corpus"),
  ],
)
def test_a_mistake_in_a_mixture_names_the_source(fields, words):
  with pytest.raises(ValueError, match=words) as error:
    resolve({**MIXTURE, **fields})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('field', 'read'),
  [
    ('data.cache_dir', lambda: DataConfig().cache_root),
    ('data.tokenizer', lambda: resolve({'tokenizer': '~/tokenizer.json'})),
    ('data.files', lambda: open_corpus(resolve({'corpus': 'files', 'files': '~/*.txt'}))),
    ('data.tfds_dir', lambda: open_corpus(resolve({'corpus': 'tfds:wiki'}))),
  ],
)
def test_a_machine_without_a_home_directory_is_told_the_field(field, read, monkeypatch):
  def nobody(user):
    raise KeyError(user)

  for name in ('HOME', 'CRT_JAX_CACHE', 'TFDS_DATA_DIR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', nobody)
  with pytest.raises(ValueError, match=f"^{field}='~/.*no home directory here; set {field} to"):
    read()


@pytest.mark.parametrize(
  ('field', 'read'),
  [
    ('data.cache_dir', lambda path: resolve({'cache_dir': path}).cache_root),
    ('data.tfds_dir', lambda path: open_corpus(resolve({'corpus': 'tfds:a', 'tfds_dir': path}))),
  ],
)
def test_a_bucket_is_refused_by_its_field(field, read):
  with pytest.raises(ValueError, match=f"^{field}='gs://texts/a': only file systems.*mount"):
    read('gs://texts/a')


@pytest.mark.parametrize(
  ('field', 'read'),
  [
    ('data.tokenizer', lambda path: resolve({'tokenizer': path})),
    ('data.files', lambda path: open_corpus(resolve({'corpus': 'files', 'files': path}))),
    ('data.corpus', lambda path: resolve({'corpus': f'packed:{path}'}).packed_folder),
  ],
)
def test_what_is_read_from_a_bucket_names_the_package(field, read, monkeypatch):
  monkeypatch.setattr('crt_jax.staging.importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match=rf"^{field}='s3://texts/a' needs s3fs; .*pip install"):
    read('s3://texts/a')


def test_the_cache_folder_is_configured_or_from_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path))
  assert DataConfig().cache_root == tmp_path
  assert DataConfig(cache_dir='/elsewhere').cache_root.as_posix() == '/elsewhere'
  monkeypatch.delenv('CRT_JAX_CACHE')
  assert DataConfig().cache_root.as_posix().endswith('.cache/crt_jax')
