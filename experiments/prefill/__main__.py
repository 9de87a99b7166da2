"""What reading a prompt by parallel passes costs and gains, against the exact recurrence:

  python -m experiments.prefill --workdir=runs/quickstart --lengths=64,128 --output=runs/prefill

For every length and every way of reading, prompts are taken from the validation text; the table
says the time to read them (without compiling) and how far the next-token distribution behind them
is from the exact one. A `sequential` prefill is exact; `parallel` runs K passes over the whole
prompt, `chunked` over stretches of c positions, each started from where the one before has ended.
The output directory gets prefill.json and the figure (.png, .svg).
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from crt_jax import cli

_WORKDIR = cli.define_workdir('Directory of a trained run; only read')
_OUTPUT = flags.DEFINE_string('output', None, 'Where prefill.json and its figure go; required.')
_LENGTHS = flags.DEFINE_list(
  'lengths', ['64', '128', '256', '512', '1024', '2048', '4096'], 'Tokens of a prompt.'
)
_CHUNKS = flags.DEFINE_list('chunks', ['16', '64', '256'], 'Positions c of a chunked prefill.')
_PASSES = flags.DEFINE_list('passes', [], 'Passes K; the configured number when left out.')
_PROMPTS = flags.DEFINE_integer('prompts', 4, 'How many prompts are read together.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed readings of each; the best counts.')


def main(argv: list[str]) -> None:
  del argv
  if not (output := _OUTPUT.value):
    raise cli.Mistake('--output is missing, as in --output=runs/prefill')
  lengths, chunks, passes = (
    _whole_numbers(name, flags.FLAGS[name].value or []) for name in ('lengths', 'chunks', 'passes')
  )
  for name in ('prompts', 'repeats'):
    _whole_numbers(name, [flags.FLAGS[name].value])
  if not lengths:
    raise cli.Mistake('--lengths is empty; give at least one, as in --lengths=64')
  run = _load(_PROMPTS.value * max(lengths))
  rows = list(_rows(run, lengths, chunks, passes))
  _write(run, rows, pathlib.Path(output))


class _Run(NamedTuple):
  """A trained CRT, prepared, and the text that its prompts are taken from."""

  model: Any
  params: dict
  text: Any
  step: int
  trained_length: int


def _load(needed: int) -> _Run:
  """Returns the run; Mistake unless it is a CRT with `needed` tokens of validation text."""
  import crt_jax
  from crt_jax import decoding
  from crt_jax.training import finish

  run = finish.open_run(_WORKDIR.value)
  model = crt_jax.build(run.config.model)
  if not model.recurs_along_sequence:
    raise cli.Mistake(f'{_WORKDIR.value}: a {model.config.name} reads a prompt in one exact pass')
  text = next(iter(run.dataset.validation_sets.values())).validation
  if len(text) < needed:
    raise cli.Mistake(
      f'--lengths and --prompts need {needed} tokens of validation text, which has {len(text)}; '
      'ask for shorter or fewer prompts'
    )
  model, params = decoding.prepare(model, run.params)
  return _Run(model, params, text, run.step, run.config.data.sequence_length)


def _rows(run: _Run, lengths: Sequence[int], chunks: Sequence[int], passes: Sequence[int]):
  """Measures, prints and yields a record for every length and way; the exact way comes first."""
  from experiments.prefill import reading

  print(f'{"tokens":>7} {"way":14}{"K":>4}{"ms":>10}{"max |logit|":>13}{"KL nats":>11}{"same":>6}')
  for length in lengths:
    tokens_BxT = run.text[: _PROMPTS.value * length].reshape(_PROMPTS.value, length)
    exact = None
    for way in reading.ways(length, chunks, passes or (run.model.config.depth,)):
      row, logits_BxV = reading.read(run.model, run.params, tokens_BxT, way, _REPEATS.value)
      exact = logits_BxV if exact is None else exact
      row |= reading.error(logits_BxV, exact)
      print(_line(row), flush=True)
      yield row


def _write(run: _Run, rows: list[dict], directory: pathlib.Path) -> None:
  from crt_jax import json_text
  from crt_jax.runs.provenance import origin
  from experiments.prefill import figure

  result = dict(
    what='reading prompts of validation text: seconds, and next-token logits against the exact',
    step=run.step,
    model=dataclasses.asdict(run.model.config),
    trained_length=run.trained_length,
    prompts=_PROMPTS.value,
    rows=rows,
    **origin(),
  )
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'prefill.json').write_text(json_text.dumps(result, indent=1) + '\n', 'utf-8')
  figure.prefill(result, directory / 'prefill')
  print(f'written to {directory}')


def _whole_numbers(name: str, values: list) -> tuple[int, ...]:
  """Returns the values of a flag as whole numbers of at least 1."""
  try:
    numbers = tuple(int(value) for value in values)
  except ValueError:
    raise cli.Mistake(f'--{name}={",".join(values)} must be whole numbers') from None
  if any(number < 1 for number in numbers):
    raise cli.Mistake(f'--{name}={min(numbers)} must be at least 1')
  return numbers


def _line(row: dict) -> str:
  way = row['method'] + (f' {row["chunk"]}' if row['method'] == 'chunked' else '')
  return (
    f'{row["tokens"]:7} {way:14}{row["passes"] or "":>4}{1e3 * row["seconds"]:10.2f}'
    f'{row["max_logit_error"]:13.3g}{row["kl"]:11.3g}{row["same_token"]:6.0%}'
  )


if __name__ == '__main__':
  cli.run(main)
