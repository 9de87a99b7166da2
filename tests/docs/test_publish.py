"""The pages show what is kept in docs/results/, and a study is published from its directory."""

import json

import pytest

from crt_jax.cli.user_errors import Mistake
from docs import publish
from experiments import pages


@pytest.mark.parametrize('name', (*publish.STUDIES, *publish.COMPILED))
def test_the_page_shows_what_is_kept(name, tmp_path):
  """`python -m docs.publish` would change nothing."""
  record = json.loads(publish.kept(name).read_text('utf-8'))
  for page, text in publish.page_of(name).texts(record, name, tmp_path).items():
    page = publish.ROOT / page
    assert pages.filled(page, text, name) == page.read_text('utf-8')
  for figure in tmp_path.iterdir():
    assert (publish.FIGURES / figure.name).exists()


def test_what_cannot_be_published(tmp_path):
  with pytest.raises(Mistake, match='no latency.json here'):
    publish.page_of('latency').read(tmp_path, 'latency')
  page = tmp_path / 'page.md'
  page.write_text('<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\n', 'utf-8')
  assert pages.filled(page, 'new', 'a') == '<!-- a -->\nnew\n<!-- /a -->\n<!-- b -->\n'
  with pytest.raises(Mistake, match='found 0 pairs of <!-- b --> marks'):
    pages.filled(page, 'new', 'b')
