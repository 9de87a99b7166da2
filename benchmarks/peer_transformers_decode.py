"""`transformers` generate with a GPT-2 of the same size, which a user would pick instead.

With the cache that grows, as `generate` has it, or with one of fixed size, with which it compiles
the model on a GPU.
"""

import functools
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel, StaticCache, __version__


def timer(
  fields: dict,
  batch: int,
  context: int,
  dtype: str,
  capacity: int,
  threads: int,
  is_static: bool = False,
) -> tuple[Callable[[int], list[float]], dict]:
  """Returns a function tokens -> seconds per token of `generate`; and its description.

  Raises:
    ValueError: no transformer.
  """
  if fields['name'] != 'transformer' or fields.get('style', 'roformer') != 'roformer':
    raise ValueError('only transformers have a GPT-2 of the same size')
  torch.set_num_threads(threads)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = GPT2Config(
    vocab_size=fields['vocab_size'],
    n_positions=capacity,
    n_embd=fields['width'],
    n_layer=fields['layers'],
    n_head=fields['heads'],
    bos_token_id=0,
    eos_token_id=None,
    pad_token_id=0,
  )
  model = GPT2LMHeadModel(config).to(device=device, dtype=getattr(torch, dtype)).eval()
  prompt = torch.ones((batch, context), dtype=torch.long, device=device)  # not the padding

  # One cache for all calls, so that nothing is compiled a second time.
  options = dict(past_key_values=StaticCache(config, max_cache_len=capacity)) if is_static else {}
  options |= dict(do_sample=True, top_k=0)

  def generate(tokens: int) -> float:
    if is_static:
      options['past_key_values'].reset()
    start = time.perf_counter()
    with torch.no_grad() if is_static else torch.inference_mode():
      model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **options).cpu()
    return time.perf_counter() - start

  def run(tokens: int) -> list[float]:
    # The prompt is read by both, and only by the longer one are the tokens written.
    return [max(generate(tokens + 1) - generate(1), 0.0) / tokens]

  cache = 'static' if is_static else 'growing'
  what = f'transformers {__version__} generate, {cache} cache, PyTorch {torch.__version__}'
  return run, dict(what=f'{what} on {device}', launches=0)


static_timer = functools.partial(timer, is_static=True)
