"""Where the pages of the documentation are, and how a script writes into them."""

import pathlib
import re

from experiments import cli

ROOT = pathlib.Path(__file__).parents[1]
FIGURES = ROOT / 'docs' / 'figures'


def filled(page: pathlib.Path, text: str, mark: str = 'quickstart') -> str:
  """The page with `text` between its two marks, <!-- mark --> and <!-- /mark -->.

  Raises:
    Mistake: the marks are not there exactly once.
  """
  marked = re.compile(rf'(<!-- {mark} -->\n).*?(<!-- /{mark} -->)', re.DOTALL)
  whole, count = marked.subn(lambda match: f'{match[1]}{text}\n{match[2]}', page.read_text('utf-8'))
  if count != 1:
    raise cli.Mistake(f'{page}: found {count} pairs of <!-- {mark} --> marks, wanted one')
  return whole
