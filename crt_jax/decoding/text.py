"""Conversion between text and tokens: what a model reads for a prompt, and what it may write."""

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from crt_jax.data.tokenizers import Tokenizer
from crt_jax.decoding.sampling import Sampling


def prompt_tokens(tokenizer: Tokenizer, separator: str, text: str) -> list[int]:
  """Returns the tokens that a model reads for a prompt, [] for an empty one.

  Args:
    separator: `config.data.separator`; a model whose documents begin with a token reads it first.
  """
  first = [tokenizer.bos] if separator == 'bos_eos' and tokenizer.bos is not None else []
  tokens = tokenizer.encode(text)
  return [*first, *tokens] if tokens else []


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
  """Returns the text that `tokens` add to the text of `prompt`.

  Decoded alone, the tokens may give another text, without the space of a first word, for example.
  """
  both = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
  return both[1][len(os.path.commonprefix(both)) :]


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the tokens at which a text ends: () where the tokenizer has none."""
  return () if tokenizer.eos is None else (tokenizer.eos,)


def sample_arguments(config: ConfigDict, tokenizer: Tokenizer) -> dict:
  """Returns what `generate` needs to write the text that `config.sample` describes.

  A model may have more tokens than its tokenizer; only those of the tokenizer are drawn.

  Raises:
    ValueError: a prompt without tokens or a wrong rule; names the field.
  """
  sample = config.sample
  prompt = prompt_tokens(tokenizer, config.data.separator, sample.prompt)
  if not prompt:
    raise ValueError(f'sample.prompt={sample.prompt!r} has no token; give at least one character')
  try:
    sampling = Sampling(
      sample.temperature, sample.top_k, sample.top_p, vocab_size=tokenizer.vocab_size
    )
  except ValueError as error:
    raise ValueError(f'sample.{error}') from None
  return dict(
    prompts=[prompt],
    num_tokens=sample.num_tokens,
    context=len(prompt) + sample.num_tokens,
    sampling=sampling,
    seed=sample.seed,
    stop_tokens=stop_tokens(tokenizer),
  )
