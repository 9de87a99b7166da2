"""Progress of an evaluation on disk, so that an interrupted evaluation can continue.

An evaluation has parts, each of one validation set in one form. The file holds the record of every
finished part, and the running sums of the one that is being scored.
"""

import dataclasses
import math
import time
from collections.abc import Callable

from crt_jax.evaluation.perplexity import Sums

WRITE_EVERY = 1.0  # seconds of work that a kill may lose


class Ledger:
  """The parts of one evaluation; without a file they are kept in memory only."""

  def __init__(
    self,
    identity: dict | None = None,
    found: dict | None = None,
    write: Callable[[dict], None] = lambda value: None,
    show: Callable[[str, int], None] = lambda name, batches: None,
  ):
    """Makes a ledger that continues from a saved one.

    Args:
      identity: JSON values that decide the numbers; what was found under another one is not used.
      found: what `write` was given last, None where there is none.
      write: keeps a JSON value, whole or not at all.
      show: is told a part's name and how many batches of it are done.
    """
    self._identity, self._write, self._show = identity, write, show
    self._parts = found['parts'] if found and found.get('identity') == identity else {}
    self._written = time.monotonic()

  def part(self, name: str, score: Callable[[Sums, Callable[[Sums], None]], dict]) -> dict:
    """Returns the record of a part: the saved one, or what `score` returns.

    Args:
      score: where to begin, what to call after each batch -> the record.
    """
    found = self._parts.get(name, {})
    if 'record' in found:
      return found['record']
    begin = Sums(**found['sums']) if found else Sums()
    record = score(begin, lambda sums: self._advance(name, sums))
    self._keep(name, {'record': record})
    return record

  def _advance(self, name: str, sums: Sums) -> None:
    self._show(name, sums.batches)
    is_due = time.monotonic() - self._written >= WRITE_EVERY
    if is_due and math.isfinite(sums.cross_entropy):
      self._keep(name, {'sums': dataclasses.asdict(sums)})

  def _keep(self, name: str, value: dict) -> None:
    self._parts[name] = value
    self._write({'identity': self._identity, 'parts': self._parts})
    self._written = time.monotonic()
