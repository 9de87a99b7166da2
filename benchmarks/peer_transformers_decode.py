"""`transformers` generate of a GPT-2 of the same size: what a user would pick instead."""

import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel, __version__


def timer(
  fields: dict, batch: int, context: int, dtype: str, capacity: int, threads: int
) -> tuple[Callable[[int], list[float]], dict]:
  """A function tokens -> seconds per token of one `generate` behind a prompt; and what it is.

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

  def generate(tokens: int) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
      model.generate(
        prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0
      ).cpu()
    return time.perf_counter() - start

  def run(tokens: int) -> list[float]:
    # The prompt is read by both, and only by the longer one are the tokens written.
    return [max(generate(tokens + 1) - generate(1), 0.0) / tokens]

  what = f'transformers {__version__} generate, PyTorch {torch.__version__} on {device}'
  return run, dict(what=what, launches=0)
