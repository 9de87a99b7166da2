"""Write text with a trained model, by its exact recurrent step, from a checkpoint of a run:

  crt-generate --workdir=runs/quickstart --prompt='Call me' --num_tokens=200

Text goes to stdout as it is made, the speed to stderr at the end. What is left out is taken from
`config.sample` of the run. The same flags and seed write the same text:

  --temperature=0                          the likeliest token each time
  --temperature=0.8 --top_k=50 --top_p=0.95 --seed=1     varied, but no unlikely words

The text ends at --num_tokens, at an end-of-text token, or where prompt and text fill the context.

Many prompts at once, a line {"prompt": "..."} each, in batches; a bad line is reported and skipped:

  crt-generate --workdir=runs/quickstart --prompts=in.jsonl --output=out.jsonl
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from crt_jax import cli
from crt_jax.cli import prompt_file

if TYPE_CHECKING:
  from crt_jax.data.tokenizers import Tokenizer

_WORKDIR = cli.define_workdir('Directory of the run; only read', buckets=True)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest when left out.')
_PROMPT = flags.DEFINE_string('prompt', None, 'The beginning of the text, at least one character.')
_NUM_TOKENS = flags.DEFINE_integer(
  'num_tokens', None, 'How many tokens to write at most.', lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature',
  None,
  'Above 1 more surprising, below 1 less; 0 always takes the likeliest token.',
  lower_bound=0,
)
_TOP_K = flags.DEFINE_integer(
  'top_k', None, 'Draw from the k likeliest tokens only; 0 = all.', lower_bound=0
)
_TOP_P = flags.DEFINE_float(
  'top_p',
  None,
  'Draw from the likeliest tokens that together reach this probability; 1 = all.',
  lower_bound=0,
  upper_bound=1,
)
_SEED = flags.DEFINE_integer(
  'seed', None, 'Which of the possible texts.', lower_bound=0, upper_bound=2**32 - 1
)
_CONTEXT = flags.DEFINE_integer(
  'context',
  None,
  'Most tokens of prompt and text together; when left out, the length the model was trained on '
  '(config.data.sequence_length). It has never seen a position beyond that.',
  lower_bound=2,
)
_PROMPTS = flags.DEFINE_string(
  'prompts', None, 'A JSONL file of prompts, {"prompt": "..."} a line.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Where the texts of --prompts go, as JSONL.')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'How many of --prompts are continued together.', lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  'What to compute in; matrices are cast once. When left out, as in training.',
)
_TENSOR = flags.DEFINE_integer(
  'tensor', 1, 'Over how many devices heads, hidden units and vocabulary are split.', 1
)
_PREFILL = flags.DEFINE_enum(
  'prefill',
  'sequential',
  ['sequential', 'parallel', 'chunked'],
  'How prompts are read: exactly, or by the passes of training over all or 64 tokens at a time.',
)


class StableText:
  """The text of a growing list of tokens, returned once no later token can change it.

  A token may hold part of a character only. What is incomplete decodes to U+FFFD at the very end,
  so that is held back.
  """

  def __init__(self, tokenizer: 'Tokenizer'):
    self._tokenizer = tokenizer
    self._tokens: list[int] = []
    self._given = 0

  def add(self, tokens: list[int], last: bool = False) -> str:
    """Returns the text that these tokens complete; with `last` also incomplete characters."""
    self._tokens.extend(tokens)
    text = self._tokenizer.decode(self._tokens)
    stable = text if last else text.rstrip('\ufffd')
    new, self._given = stable[self._given :], max(self._given, len(stable))
    return new


def main(argv: list[str]) -> int | None:
  del argv
  source, target = _PROMPTS.value, _OUTPUT.value
  if bool(source) != bool(target):
    raise ValueError('--prompts and --output go together: JSONL in, JSONL out')
  if source and target and os.path.realpath(source) == os.path.realpath(target):
    raise ValueError(f'--output={target} is the file of --prompts; give another')
  if target and os.path.isfile(target) and os.path.getsize(target):
    raise ValueError(f'--output={target} is there already; give another file')
  if source and _PROMPT.value is not None:
    raise ValueError('--prompt and --prompts are two sources; give one')
  if _PROMPT.value == '':
    raise ValueError("--prompt is empty; give at least one character, as in --prompt='Call me'")
  run = _load()
  if source and target:
    return _write_file(run, source, target)
  return _write_text(run)


class _Run(NamedTuple):
  """A trained model, ready to decode, and its decoding options.

  Attributes:
    encode: text -> the tokens that the model reads, [] for no text.
    options: of `decoding.stream`.
    num_tokens: at most this many for each prompt.
    trained_length: of the windows it was trained on.
  """

  model: Any
  params: dict
  tokenizer: Any
  encode: Callable[[str], list[int]]
  options: dict
  num_tokens: int
  prompt: str
  trained_length: int


def _load() -> _Run:
  """Loads the model; raises ValueError for a run, a tokenizer or a flag that does not fit."""
  # Slow imports come after the checks of the flags.
  import crt_jax
  from crt_jax import decoding, sharding
  from crt_jax.runs import checkpoint

  mesh = None if _TENSOR.value == 1 else sharding.tensor_mesh(_TENSOR.value)
  config, params, tokenizer, _ = checkpoint.load_params(_WORKDIR.value, _STEP.value, mesh)
  model = crt_jax.build(config.model)
  sample = {name: _or_default(name, config.sample[name]) for name in config.sample}
  sampling = decoding.Sampling(
    sample['temperature'], sample['top_k'], sample['top_p'], tokenizer.vocab_size
  )
  model, params = decoding.prepare(model, params, _DTYPE.value)
  length = config.data.sequence_length
  options = dict(
    context=length if _CONTEXT.value is None else _CONTEXT.value,
    sampling=sampling,
    seed=sample['seed'],
    stop_tokens=decoding.stop_tokens(tokenizer),
    prefill=_PREFILL.value,
  )
  encode = functools.partial(decoding.prompt_tokens, tokenizer, config.data.separator)
  return _Run(
    model, params, tokenizer, encode, options, sample['num_tokens'], sample['prompt'], length
  )


def _write_text(run: _Run) -> None:
  """Writes the continuation of one prompt to the terminal, as it is generated."""
  from crt_jax import decoding

  prompt, context = run.encode(run.prompt), run.options['context']
  if not prompt:
    raise ValueError('--prompt has no token in this vocabulary; give other text')
  if len(prompt) >= context:
    raise ValueError(
      f'--prompt has {len(prompt)} tokens, which leaves no room in the context of {context}; '
      f'shorten it, or raise --context (the model was trained on {run.trained_length})'
    )
  chunks = decoding.stream(run.model, run.params, [prompt], run.num_tokens, chunk=16, **run.options)
  written = _print(chunks, StableText(run.tokenizer), prompt)
  if written == context - len(prompt) < run.num_tokens:
    print(
      f'stopped after {written} of {run.num_tokens} tokens: prompt and text fill the context '
      f'of {context}; --context={len(prompt) + run.num_tokens} has room for all',
      file=sys.stderr,
    )


def _write_file(run: _Run, source: str, target: str) -> None:
  """Continues all prompts of a file in batches; each is on disk before the next begins."""
  from crt_jax import decoding

  report = functools.partial(print, file=sys.stderr)
  prompts = prompt_file.read(source, run.encode, run.options['context'], report)
  count, seconds = 0, 0.0
  with open(target, 'w', encoding='utf-8') as output:
    for batch in prompt_file.batches(prompts, _BATCH_SIZE.value):
      start = time.perf_counter()
      # A short last batch is filled up, so that it needs no compilation and draws the same.
      rows = [batch[min(i, len(batch) - 1)] for i in range(min(_BATCH_SIZE.value, len(prompts)))]
      texts = decoding.generate(
        run.model,
        run.params,
        [prompt.tokens for prompt in rows],
        run.num_tokens,
        rows=[prompt.line for prompt in rows],
        **run.options,
      )
      seconds += time.perf_counter() - start
      for prompt, tokens in zip(batch, texts, strict=False):
        count += len(tokens)
        text = decoding.continuation(run.tokenizer, prompt.tokens, tokens)
        output.write(prompt_file.result(prompt, tokens, text))
      output.flush()
  report(f'{len(prompts)} prompts, {count} tokens, {count / seconds:.1f} tokens/s with compilation')


def _or_default(name: str, default: Any):
  """Returns the flag of that name, or the run's config value if the flag is unset."""
  value = flags.FLAGS[name].value
  return default if value is None else value


def _print(chunks: Iterable[list[list[int]]], text: StableText, prompt: list[int]) -> int:
  """Prints text as it is generated, then its speed; returns the number of new tokens."""
  start = time.perf_counter()
  print(text.add(prompt), end='', flush=True)
  counts, times = [], []
  for (tokens,) in chunks:
    print(text.add(tokens), end='', flush=True)
    counts.append(len(tokens))
    times.append(time.perf_counter())
  print(text.add([], last=True), flush=True)
  # The first chunk waits for the compiler; the speed is measured from the second one on.
  if sum(counts[1:]):
    speed = sum(counts[1:]) / (times[-1] - times[0])
    wait = f'the first {counts[0]} after {times[0] - start:.1f} s, with compilation'
  else:
    speed, wait = sum(counts) / (times[-1] - start), 'compilation included'
  print(f'{sum(counts)} tokens, {speed:.1f} tokens/s ({wait})', file=sys.stderr)
  return sum(counts)


def start() -> None:
  """Runs the console script `crt-generate`; does not return."""
  cli.run(main)
