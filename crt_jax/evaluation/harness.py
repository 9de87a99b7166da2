"""EleutherAI's lm-evaluation-harness over our models.

The harness is no dependency: only the functions here that need it import it.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crt_jax import decoding
from crt_jax.data.tokenizers import Tokenizer
from crt_jax.evaluation.likelihood import Likelihood, Tokens, likelihoods
from crt_jax.evaluation.perplexity import Form
from crt_jax.models.base import Model
from crt_jax.program import install
from crt_jax.schema.fields import closest, require
from crt_jax.types import Params

SAMPLING = ('do_sample', 'temperature', 'top_k', 'top_p', 'until', 'max_gen_toks')


def task_forms(model: Model, depths: Sequence[int] = ()) -> tuple[Form, ...]:
  """Returns the forms in which a model is scored: each depth, and a CRT's exact recurrence.

  Raises:
    ValueError: a depth the model cannot have.
  """
  exact = model.recurs_along_sequence and model.has_sequential_form
  wanted = depths or (() if exact else (None,))
  parallel = [Form('parallel', model.resolve_depth(depth)) for depth in wanted]
  return *dict.fromkeys(parallel), *((Form('sequential'),) if exact else ())


class Scorer:
  """The model interface that the harness calls.

  `for_harness` makes it a subclass of the harness's own base class, which splits a request into
  context tokens and scored tokens.
  """

  def __init__(
    self,
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    separator: str,
    form: Form,
    *,
    context: int,
    batch_size: int,
  ):
    """Takes a model that is ready to decode.

    Args:
      separator: `config.data.separator`; with 'bos_eos' a text begins with a token.
      context: the most positions that the model reads.
    """
    super().__init__()
    self._model, self._params, self._form = model, params, form
    self._vocabulary, self._separator = tokenizer, separator
    self.max_length, self.batch_size = context, batch_size
    self.cut = 0  # number of texts that were cut on the left

  @property
  def eot_token_id(self) -> int | None:
    return self._vocabulary.eos

  @property
  def prefix_token_id(self) -> int:
    """The token before a text that has no context."""
    for token in (self._vocabulary.bos, self._vocabulary.eos):
      if token is not None:
        return token
    raise ValueError(
      'a task scores text with nothing before it, and the tokenizer of this run has no token for '
      "the beginning or end of a text; train with data.separator='eos', or leave that task out"
    )

  def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
    separator = 'none' if add_special_tokens is False else self._separator
    tokens = decoding.prompt_tokens(self._vocabulary, separator, string)
    # A context of spaces reaches this as '', and its continuation with what begins a text.
    return tokens or ([self.prefix_token_id] if separator == 'bos_eos' else [])

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, Tokens, Tokens]], disable_tqdm: bool = False
  ) -> list[Likelihood]:
    pairs = [(before or [self.prefix_token_id], scored) for _, before, scored in requests]
    self.cut += sum(len(a) + len(b) > self.max_length + 1 for a, b in pairs)
    with _progress(len(pairs), 'scoring', disable_tqdm) as bar:
      return likelihoods(
        self._model,
        self._params,
        pairs,
        self._form,
        context=self.max_length,
        batch_size=self.batch_size,
        after=bar.update,
      )

  def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
    """Returns the log-likelihood of whole texts, scored in windows with full context."""
    from lm_eval import utils

    windows, counts = [], []
    for request in requests:
      tokens = self.tok_encode(request.args[0], add_special_tokens=False)
      of_text = [
        (None, *utils.make_disjoint_window(window))
        for window in utils.get_rolling_token_windows(
          tokens, self.prefix_token_id, self.max_length, context_len=1
        )
      ]
      windows += of_text
      counts.append(len(of_text))
    logs = iter([log for log, _ in self._loglikelihood_tokens(windows, disable_tqdm)])
    return [sum(next(logs) for _ in range(count)) for count in counts]

  def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
    """Returns continuations of prompts; prompts with equal arguments share a batch."""
    from lm_eval.models.utils import Collator, normalize_gen_kwargs

    model, params = decoding.prepare(self._model, self._params)
    collator = Collator(
      [request.args for request in requests],
      sort_fn=lambda prompt: (-len(self.tok_encode(prompt[0])), prompt[0]),
      group_fn=lambda prompt: prompt[1],
      group_by='gen_kwargs',
    )
    texts: list[str] = []
    with _progress(len(requests), 'writing', disable_tqdm) as bar:
      for batch in collator.get_batched(n=self.batch_size):
        given = dict(normalize_gen_kwargs(batch[0][1]))
        prompts = [self._prompt(text, given['max_gen_toks']) for text, _ in batch]
        # A short last batch is filled up, so that it compiles nothing.
        prompts += prompts[-1:] * (min(self.batch_size, len(requests)) - len(batch))
        rows = range(len(texts), len(texts) + len(prompts))
        texts += self._write(model, params, prompts, rows, given)[: len(batch)]
        bar.update(len(batch))
    return collator.get_original(texts)

  def _prompt(self, text: str, written: int) -> list[int]:
    """Returns the tokens of a prompt, cut on the left to leave room for the continuation."""
    room = self.max_length - written
    require(
      room > 0,
      f'a task writes up to {written} tokens, which leaves no room for a prompt in the context of '
      f'{self.max_length}; raise the context, or leave that task out',
    )
    tokens = self.tok_encode(text) or [self.prefix_token_id]
    self.cut += len(tokens) > room
    return tokens[-room:]

  def _write(
    self,
    model: Model,
    params: Params,
    prompts: list[list[int]],
    rows: Sequence[int],
    given: dict,
  ) -> list[str]:
    """Returns the continuation of each prompt, cut where the first of its stop strings begins."""
    unknown = given.keys() - SAMPLING
    require(not unknown, f'a task sets {", ".join(unknown)} of its text, which is not implemented')
    sampling = decoding.Sampling(
      given.get('temperature', 1.0) if given['do_sample'] else 0,
      given.get('top_k') or 0,
      given.get('top_p') or 1,
      self._vocabulary.vocab_size,
    )
    texts: list[list[int]] = [[] for _ in prompts]
    written = [''] * len(prompts)
    for new in decoding.stream(
      model,
      params,
      prompts,
      given['max_gen_toks'],
      context=self.max_length,
      sampling=sampling,
      rows=rows,
      stop_tokens=decoding.stop_tokens(self._vocabulary),
      depth=self._form.depth,
    ):
      ended = []
      for i, tokens in enumerate(new):
        texts[i] += tokens
        text = decoding.continuation(self._vocabulary, prompts[i], texts[i])
        ends = [text.index(stop) for stop in given['until'] if stop and stop in text]
        written[i] = text[: min(ends, default=None)]
        ended.append(bool(ends) or not tokens)
      if all(ended):
        break
    return written


def _progress(total: int, doing: str, disable: bool) -> Any:
  from tqdm import tqdm

  return tqdm(total=total, desc=doing, disable=disable or None)  # None: off without a terminal


def for_harness(*args: Any, **options: Any) -> Any:
  """Returns a `Scorer` that is also an `lm_eval.api.model.LM`."""
  from lm_eval.api.model import TemplateLM

  return type('CrtJax', (Scorer, TemplateLM), {})(*args, **options)


def tasks_of(names: Sequence[str], include_path: str | None = None) -> Any:
  """Returns the harness's task manager, which knows all of these tasks.

  Args:
    include_path: folder of more tasks, in YAML. The harness's own are thousands of files, which are
      left alone where this folder has all that are asked for.

  Raises:
    ValueError: lm_eval is not installed, there is no such folder or task.
  """
  try:
    from lm_eval.tasks import TaskManager
  except ImportError as error:
    raise ValueError(f'--tasks needs {error.name}: {install("tasks")}') from None
  require(
    include_path is None or Path(include_path).is_dir(),
    f'--include_path={include_path} is no folder; give one that holds tasks as .yaml files',
  )
  if include_path is not None:
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if set(names) <= set(manager.all_tasks):
      return manager
  manager = TaskManager(include_path=include_path)
  for name in names:
    if name not in manager.all_tasks:
      like = closest(name, manager.all_tasks)
      hint = f'; did you mean {like}?' if like else '; give tasks of your own by --include_path'
      raise ValueError(f'--tasks={name}: the harness knows no such task{hint}')
  return manager


def check_tasks(manager: Any, names: Sequence[str], can_write: bool) -> None:
  """Opens the data of the tasks.

  Args:
    can_write: whether the model is asked in forms alone that write text: a CRT does by its exact
      recurrence, and not by parallel passes.

  Raises:
    ValueError: data that is not here, a task that writes text; names the task and the fix.
  """
  from datasets.exceptions import DatasetsError

  for name in names:
    try:
      found = manager.load([name])['tasks']
    except (OSError, ValueError, KeyError, DatasetsError) as error:
      why = ' '.join(f'{type(error).__name__}: {error}'.split())
      raise ValueError(
        f'--tasks={name}: its data cannot be opened ({why}); where no hub is reached, give it from '
        'files with --include_path=DIR (docs/pretrained.md)'
      ) from None
    for task in found.values():
      require(
        can_write or task.OUTPUT_TYPE != 'generate_until',
        f'--tasks={name} writes text, which this model does by its exact recurrence alone; leave '
        '--depth out',
      )


def evaluate(
  scorer: Any, manager: Any, names: Sequence[str], path: str, output: Path, **options: Any
) -> list[dict]:
  """Runs the tasks and writes the harness's own files: results_*.json, samples_*.jsonl.

  Args:
    scorer: from `for_harness`.
    manager: from `tasks_of`.
    path: of the model, by which the harness names its folder below `output`.
    options: of `lm_eval.simple_evaluate`.

  Returns: a row for each metric of each task and group: 'task', 'metric', 'value', 'stderr' (None
    where there is none), 'documents', 'higher_is_better'.
  """
  from lm_eval import simple_evaluate
  from lm_eval.loggers import EvaluationTracker

  os.environ.setdefault('DISABLE_MULTIPROC', '1')  # its resampling would fork a process with JAX
  tracker = EvaluationTracker(output_path=str(output))
  arguments = {'path': path, 'context': scorer.max_length}
  results = simple_evaluate(
    scorer,
    arguments,
    list(names),
    task_manager=manager,
    batch_size=scorer.batch_size,
    evaluation_tracker=tracker,
    **options,
  )
  samples = results.pop('samples')
  tracker.save_results_aggregated(results=results, samples=samples)
  for name, of_task in samples.items():
    tracker.save_results_samples(task_name=name, samples=of_task)
  return list(_rows(results))


def _rows(results: dict) -> Iterator[dict]:
  for task, scores in results['results'].items():
    for key, value in scores.items():
      metric, _, kind = key.partition(',')
      if not kind or metric.endswith('_stderr') or isinstance(value, str):
        continue
      error = scores.get(f'{metric}_stderr,{kind}')
      is_known = isinstance(error, float) and math.isfinite(error)
      yield {
        'task': task,
        'metric': metric if kind == 'none' else f'{metric} ({kind})',
        'value': value,
        'stderr': error if is_known else None,
        'documents': results['n-samples'].get(task, {}).get('effective'),
        'higher_is_better': results['higher_is_better'].get(task, {}).get(metric),
      }
