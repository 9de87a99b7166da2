"""Missing files of a data set, reported completely and once, with the commands that get them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crt_jax.program import typed
from crt_jax.schema.data import FETCHED


class Fetch(NamedTuple):
  """A set that `experiments.fetch` gets, and its folder."""

  dataset: str
  output: str


class Missing(ValueError):
  """Something that is not present.

  Attributes:
    what: it, in words.
    hows: what gets it, in words or by `experiments.fetch`.
  """

  def __init__(self, what: str, *hows: str | Fetch):
    super().__init__(f'{what}; {_advice(hows)}')
    self.what, self.hows = what, hows

  def of(self, source: str) -> 'Missing':
    """Returns the same error for a source of a mixture."""
    return Missing(f'data.sources.{source}: {self.what}', *self.hows)


def files(field: str, pattern: str) -> Missing:
  """Returns the error for a glob or path in a field of `config.data` that matches nothing."""
  what, folder = f'data.{field}={pattern!r} matches no file', Path(pattern).parent
  if folder.name in FETCHED:
    return Missing(what, Fetch(FETCHED[folder.name], str(folder.parent)))
  check = f'check path and quotes (seen from {Path.cwd()}), or get some text first'
  return Missing(what, f'{check} (docs/cart.md, 5.2)' if field != 'tokenizer' else check)


@contextlib.contextmanager
def gathered() -> Iterator[Callable[[], contextlib.AbstractContextManager]]:
  """Yields a context manager that collects `Missing` errors, so that all sources are tried.

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
  """Returns every command, one for everything that is fetched into the same folder."""
  fetched: dict[str, list[str]] = {}
  words = []
  for how in hows:
    if isinstance(how, Fetch):
      fetched.setdefault(how.output, []).append(how.dataset)
    else:
      words.append(how)
  for output, names in fetched.items():
    fetch = typed('python -m experiments.fetch')
    words.append(f'to get it: {fetch} --dataset={",".join(names)} --output={output}')
  return '; then '.join(words)
