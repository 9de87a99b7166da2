"""Publishes a benchmark's result: printed as JSON and, if asked, written to a file."""

import pathlib

from absl import flags

from crt_jax import json_text
from crt_jax.runs.provenance import origin

OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result as JSON; empty: print only.')


def publish(result: dict) -> None:
  """Prints `result` with hardware, versions and commit, and writes it to --output."""
  text = json_text.dumps({**result, **origin()}, indent=2)
  print(text)
  if OUTPUT.value:
    path = pathlib.Path(OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n', 'utf-8')
