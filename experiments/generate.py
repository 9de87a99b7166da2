"""Write text with a trained model, by its exact recurrent step, from a checkpoint of a run:

  python -m experiments.generate --workdir=runs/quickstart --prompt='Call me' --num_tokens=200

Text goes to stdout as it is made, the speed to stderr at the end. What is left out is taken from
`config.sample` of the run. The same flags and seed write the same text:

  --temperature=0                          the likeliest token each time
  --temperature=0.8 --top_k=50 --top_p=0.95 --seed=1     varied, but no unlikely words

The text ends at --num_tokens, at an end-of-text token, or where prompt and text fill the context.
"""

import sys
import time

from absl import flags

from experiments import cli

_WORKDIR = cli.define_workdir('Directory of the run; only read')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest when left out.')
_PROMPT = flags.DEFINE_string('prompt', None, 'The beginning of the text, at least one character.')
_NUM_TOKENS = flags.DEFINE_integer('num_tokens', None, 'How many tokens to write at most.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', None, 'Above 1 more surprising, below 1 less; 0 always takes the likeliest token.'
)
_TOP_K = flags.DEFINE_integer('top_k', None, 'Draw from the k likeliest tokens only; 0 = all.')
_TOP_P = flags.DEFINE_float(
  'top_p', None, 'Draw from the likeliest tokens that together reach this probability; 1 = all.'
)
_SEED = flags.DEFINE_integer('seed', None, 'Which of the possible texts.')
_CONTEXT = flags.DEFINE_integer(
  'context',
  None,
  'Most tokens of prompt and text together; when left out, the length the model was trained on '
  '(config.data.sequence_length). It has never seen a position beyond that.',
)


class StableText:
  """Text of a growing list of tokens, given out once no later token can change it.

  A token may hold part of a character only. What is incomplete decodes to U+FFFD at the very end,
  so that is held back.
  """

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self._tokens: list[int] = []
    self._given = 0

  def add(self, tokens: list[int], last: bool = False) -> str:
    """The text that these tokens complete; with `last` also what stays incomplete."""
    self._tokens.extend(tokens)
    text = self._tokenizer.decode(self._tokens)
    stable = text if last else text.rstrip('\ufffd')
    new, self._given = stable[self._given :], max(self._given, len(stable))
    return new


def main(argv):
  del argv
  # Heavy imports wait until the flags are known to be right.
  import crt_jax
  from crt_jax import decoding
  from crt_jax.training import checkpoint

  config, params, tokenizer, _ = checkpoint.load_params(_WORKDIR.value, _STEP.value)
  model = crt_jax.build(config.model)
  if tokenizer.vocab_size > model.config.vocab_size:
    raise ValueError(
      f'{_WORKDIR.value}/tokenizer has {tokenizer.vocab_size} tokens, but model.vocab_size='
      f'{model.config.vocab_size}; put back the tokenizer this run was trained with'
    )
  sample = {name: _or_default(name, config.sample[name]) for name in config.sample}
  sampling = decoding.Sampling(
    sample['temperature'], sample['top_k'], sample['top_p'], tokenizer.vocab_size
  )
  prompt = tokenizer.encode(sample['prompt'])
  if not prompt:
    raise ValueError("--prompt is empty; give at least one character, as in --prompt='Call me'")
  if config.data.separator == 'bos_eos':
    prompt = [tokenizer.bos, *prompt]
  context = config.data.sequence_length if _CONTEXT.value is None else _CONTEXT.value
  if len(prompt) >= context:
    raise ValueError(
      f'--prompt has {len(prompt)} tokens, which leaves no room in the context of {context}; '
      f'shorten it, or raise --context (the model was trained on {config.data.sequence_length})'
    )
  chunks = decoding.stream(
    model,
    params,
    [prompt],
    sample['num_tokens'],
    context=context,
    sampling=sampling,
    seed=sample['seed'],
    stop_tokens=() if tokenizer.eos is None else (tokenizer.eos,),
    chunk=16,
  )
  written = _print(chunks, StableText(tokenizer), prompt)
  if written == context - len(prompt) < sample['num_tokens']:
    print(
      f'stopped after {written} of {sample["num_tokens"]} tokens: prompt and text fill the context '
      f'of {context}; --context={len(prompt) + sample["num_tokens"]} has room for all',
      file=sys.stderr,
    )


def _or_default(name: str, default):
  """The flag of that name, or what the run's config says."""
  value = flags.FLAGS[name].value
  return default if value is None else value


def _print(chunks, text: StableText, prompt: list[int]) -> int:
  """Prints text as it comes and its speed at the end; returns the number of new tokens."""
  start = time.perf_counter()
  print(text.add(prompt), end='', flush=True)
  counts, times = [], []
  for (tokens,) in chunks:
    print(text.add(tokens), end='', flush=True)
    counts.append(len(tokens))
    times.append(time.perf_counter())
  print(text.add([], last=True), flush=True)
  # The first chunk waits for the compiler, and the second starts when it is here: from then on the
  # clock shows the speed.
  if sum(counts[1:]):
    speed = sum(counts[1:]) / (times[-1] - times[0])
    wait = f'the first {counts[0]} after {times[0] - start:.1f} s, with compilation'
  else:
    speed, wait = sum(counts) / (times[-1] - start), 'compilation included'
  print(f'{sum(counts)} tokens, {speed:.1f} tokens/s ({wait})', file=sys.stderr)
  return sum(counts)


if __name__ == '__main__':
  cli.run(main)
