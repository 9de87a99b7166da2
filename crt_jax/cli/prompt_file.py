"""Prompts from a JSONL file and their continuations into one, for `crt-generate`.

Each line in is {"prompt": "text"}; each line out {"line": its number, "prompt", "text", "tokens"},
in the same order; prompt and text, joined, are what the model read and wrote. Other fields of a
line, as an "id", come back with it. A bad line is reported by its number and skipped.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Prompt(NamedTuple):
  """One usable line of a prompt file."""

  line: int
  text: str
  tokens: list[int]
  others: dict[str, Any]  # other fields of the line; the answer's own fields win


def read(
  path: str, encode: Callable[[str], list[int]], context: int, report: Callable[[str], None]
) -> list[Prompt]:
  """Returns the usable prompts of a file.

  Args:
    encode: text -> the tokens that the model reads.
    context: a prompt must leave room in it.
    report: gets one line for every line that is skipped.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not there or no text, or has no usable line.
  """
  try:
    lines = pathlib.Path(path).read_text('utf-8-sig').split('\n')
  except FileNotFoundError:
    raise ValueError(f'--prompts={path}: no such file') from None
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text (byte {error.start})') from None
  prompts = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      others = _record_of(line)
      text = others.pop('prompt')
      prompts.append(Prompt(number, text, _tokens_of(text, encode, context), others))
    except ValueError as error:
      report(f'{path}:{number}: {error}; skipped')
  if not prompts:
    raise ValueError(f'{path} has no usable line; one looks like {{"prompt": "Call me"}}')
  return prompts


def _record_of(line: str) -> dict[str, Any]:
  from crt_jax import json_text

  try:
    record = json_text.parse(line)
  except ValueError as error:
    raise ValueError(f'no JSON ({error})') from None
  if not isinstance(record, dict) or not isinstance(record.get('prompt'), str):
    raise ValueError('no text under "prompt", as in {"prompt": "Call me"}')
  if not record['prompt']:
    raise ValueError('the prompt is empty')
  try:
    json.dumps(record, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise ValueError('half a character (a lone surrogate)') from None
  return record


def _tokens_of(text: str, encode: Callable[[str], list[int]], context: int) -> list[int]:
  tokens = encode(text)
  if not tokens:
    raise ValueError('the prompt has no token in this vocabulary')
  if len(tokens) >= context:
    raise ValueError(f'{len(tokens)} tokens leave no room in the context of {context}')
  return tokens


def batches(prompts: list[Prompt], size: int) -> Iterator[list[Prompt]]:
  """Yields the prompts in their order, `size` at a time."""
  for start in range(0, len(prompts), size):
    yield prompts[start : start + size]


def result(prompt: Prompt, tokens: list[int], text: str) -> str:
  """Returns the output line of a prompt."""
  answer = dict(line=prompt.line, prompt=prompt.text, text=text, tokens=len(tokens))
  record = answer | {k: v for k, v in prompt.others.items() if k not in answer}
  return json.dumps(record, ensure_ascii=False) + '\n'
