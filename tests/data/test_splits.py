import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax.data.documents import Corpus, Document, leading_bits, survey
from crt_jax.data.splits import contiguous_cut, held_out, split_rule
from crt_jax.schema.data import resolve


def survey_of(texts):
  return survey(Corpus('files', None, lambda: (Document.of('', text) for text in texts)))


def bits(text):
  return leading_bits(hashlib.sha256(text.encode('utf-8')).digest())


@given(
  texts=st.lists(st.text(min_size=1), min_size=2, max_size=30),
  fraction=st.floats(0.01, 0.99),
)
def test_equal_documents_stay_together_and_no_side_is_empty(texts, fraction):
  config, found = resolve({'validation_fraction': fraction}), survey_of(texts)
  if len(set(texts)) == 1:
    with pytest.raises(ValueError, match='cannot split .* equal document'):
      held_out(config, found)
    return
  rule = held_out(config, found)
  sides = {text: rule(bits(text)) for text in texts}
  assert set(sides.values()) == {True, False}


def test_the_share_is_the_fraction_and_more_documents_move_none():
  texts = [f'document {index}' for index in range(2000)]
  config = resolve({'validation_fraction': 0.1})
  few, all_ = (held_out(config, survey_of(part)) for part in (texts[:500], texts))
  assert [few(bits(text)) for text in texts] == [all_(bits(text)) for text in texts]
  assert 0.08 < sum(all_(bits(text)) for text in texts) / 2000 < 0.12


@pytest.mark.parametrize(
  ('documents', 'fraction', 'rule'),
  [
    (1, 0.1, 'contiguous'),
    (9, 0.1, 'contiguous'),
    (10, 0.1, 'document_hash'),
    (2, 0.5, 'document_hash'),
  ],
)
def test_auto_splits_by_document_where_there_are_many(documents, fraction, rule):
  found = survey_of([str(index) for index in range(documents)])
  assert split_rule(resolve({'validation_fraction': fraction}), found) == rule
  assert split_rule(resolve({'split': 'contiguous'}), found) == 'contiguous'


def test_the_contiguous_cut_is_the_papers():
  assert contiguous_cut(resolve({}), 1_204_997) == int(0.9 * 1_204_997)
