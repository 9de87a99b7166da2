"""What has to be got before a data set can be opened: said completely, once, with the commands."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crt_jax.program import python
from crt_jax.schema.data import FETCHED


class Fetch(NamedTuple):
  """What `experiments.fetch` gets, and the folder of all that it gets."""

  dataset: str
  output: str


class Missing(ValueError):
  """Something that is not here.

  Attributes:
    what: it, in words.
    hows: what gets it, in words or by `experiments.fetch`.
  """

  def __init__(self, what: str, *hows: str | Fetch):
    super().__init__(f'{what}; {_advice(hows)}')
    self.what, self.hows = what, hows

  def of(self, source: str) -> 'Missing':
    """Returns the same, of a source of a mixture."""
    return Missing(f'data.sources.{source}: {self.what}', *self.hows)


def files(field: str, pattern: str) -> Missing:
  """Says that the glob or the path in a field of `config.data` matches nothing."""
  what, folder = f'data.{field}={pattern!r} matches no file', Path(pattern).parent
  if folder.name in FETCHED:
    return Missing(what, Fetch(FETCHED[folder.name], str(folder.parent)))
  check = f'check path and quotes (seen from {Path.cwd()}), or get some text first'
  return Missing(what, f'{check} (docs/cart.md, 5.2)' if field != 'tokenizer' else check)


@contextlib.contextmanager
def gathered() -> Iterator[Callable[[], contextlib.AbstractContextManager]]:
  """Gives contexts of which each may find something missing, so that all of them are tried.

  Raises:
    Missing: all that they found, at the end.
  """
  found: list[Missing] = []

  @contextlib.contextmanager
  def gather() -> Iterator[None]:
    try:
      yield
    except Missing as error:
      found.append(error)

  yield gather
  if len(found) == 1:
    raise found[0]
  if found:
    hows = (how for one in found for how in one.hows)
    raise Missing('; '.join(one.what for one in found), *dict.fromkeys(hows))


def _advice(hows: tuple[str | Fetch, ...]) -> str:
  """Returns every command, one for all that is fetched into a folder."""
  fetched: dict[str, list[str]] = {}
  words = []
  for how in hows:
    if isinstance(how, Fetch):
      fetched.setdefault(how.output, []).append(how.dataset)
    else:
      words.append(how)
  for output, names in fetched.items():
    command = f'{python()} -m experiments.fetch --dataset={",".join(names)} --output={output}'
    words.append(f'to get it: {command}')
  return '; then '.join(words)
