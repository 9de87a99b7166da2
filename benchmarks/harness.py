"""Scores on tasks beside those of the harness's own backend: the same documents, answers and time.

  .venv-peer/bin/python -m benchmarks.harness --source=models/SmolLM2-135M \
    --tasks=piqa,lambada_openai --limit=200 --output=benchmarks/results/harness.json

`--source` is a Hugging Face folder, which both open in float32. Each side answers all requests for
log-likelihoods of a task twice, in turns; ours compiles in the first round. The result holds both
times, the scores, how many choices and greedy flags differ, and the largest difference of a
log-likelihood. With --float64 the eight that differ most are answered again by both in float64,
which says how far each is off in float32. Needs the environment of `make test-pretrained`.
"""

import os
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

import crt_jax
from benchmarks.results import publish
from crt_jax import evaluation
from crt_jax.evaluation import harness

_SOURCE = flags.DEFINE_string('source', None, 'Folder of the model.', required=True)
_TASKS = flags.DEFINE_list('tasks', ['piqa', 'lambada_openai'], 'Names as lm_eval has them.')
_INCLUDE_PATH = flags.DEFINE_string('include_path', None, 'Folder of further tasks, in YAML.')
_LIMIT = flags.DEFINE_integer('limit', 200, 'Documents of each task.', 1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'How many texts are read together.', 1)
_CONTEXT = flags.DEFINE_integer('context', 1024, 'Most tokens of a text.', 2)
_FLOAT64 = flags.DEFINE_bool('float64', False, 'Answer what differs most in float64 too.')


def main(argv: list[str]) -> None:
  del argv
  manager = harness.tasks_of(_TASKS.value, _INCLUDE_PATH.value)
  jax.config.update('jax_enable_x64', _FLOAT64.value)
  sides = {'ours': _ours('float32'), 'hf': _theirs('float32')}
  publish(
    {
      'what': "log-likelihoods of tasks by this project and by the harness's backend hf",
      'source': os.path.basename(_SOURCE.value.rstrip('/')),
      'batch_size': _BATCH_SIZE.value,
      'load_before': os.getloadavg()[0],
      'tasks': {name: _compared(sides, manager, name) for name in _TASKS.value},
    }
  )


def _ours(dtype: str) -> Any:
  run = crt_jax.load(_SOURCE.value)
  run.config.model.dtype = dtype
  model = evaluation.scoring_model(crt_jax.build(run.config.model), run.config)
  (form,) = harness.task_forms(model)
  return harness.for_harness(
    model,
    jax.tree.map(lambda a: np.asarray(a, dtype), run.params),
    run.tokenizer,
    'none',
    form,
    context=_CONTEXT.value,
    batch_size=_BATCH_SIZE.value,
  )


def _theirs(dtype: str) -> Any:
  from lm_eval.models.huggingface import HFLM

  return HFLM(
    _SOURCE.value,
    device='cpu',
    dtype=dtype,
    batch_size=_BATCH_SIZE.value,
    max_length=_CONTEXT.value,
  )


def _compared(sides: dict[str, Any], manager: Any, task: str) -> dict:
  from lm_eval import simple_evaluate

  answers, asked, scores, seconds = {}, {}, {}, {name: [] for name in sides}
  for name, side in sides.items():
    asked[name] = kept = []
    answer = side.loglikelihood

    def recorded(requests: list, answer: Any = answer, kept: list = kept, **options: Any) -> Any:
      kept += requests
      return answer(requests, **options)

    side.loglikelihood = recorded
    found = simple_evaluate(
      side, tasks=[task], task_manager=manager, limit=_LIMIT.value, bootstrap_iters=0
    )
    side.loglikelihood = answer
    scores[name] = {
      metric: value
      for metric, value in found['results'][task].items()
      if isinstance(value, float) and 'stderr' not in metric
    }
  for _ in range(2):
    for name, side in sides.items():
      started = time.perf_counter()
      answers[name] = side.loglikelihood(asked[name], disable_tqdm=True)
      seconds[name].append(round(time.perf_counter() - started, 2))
  pairs = list(zip(answers['ours'], answers['hf'], strict=True))
  found = {
    'documents': _LIMIT.value,
    'requests': len(pairs),
    'scores': scores,
    'different_greedy_flags': sum(a[1] != b[1] for a, b in pairs),
    'largest_difference': max(abs(a[0] - b[0]) for a, b in pairs),
    'different_choices': _different_choices(asked['ours'], pairs),
    'seconds': seconds,
    'requests_per_second_of_hf': round(seconds['hf'][-1] / seconds['ours'][-1], 3),
  }
  if _FLOAT64.value:
    found['largest_differences'] = _in_float64(asked['ours'], pairs)
  return found


def _in_float64(requests: list, pairs: list) -> list[dict[str, float]]:
  """Returns log-likelihoods of the eight that differ most, and how far float32 was off."""
  order = sorted(range(len(pairs)), key=lambda i: -abs(pairs[i][0][0] - pairs[i][1][0]))[:8]
  chosen = [requests[i] for i in order]
  ours, theirs = (
    [log for log, _ in side('float64').loglikelihood(chosen, disable_tqdm=True)]
    for side in (_ours, _theirs)
  )
  return [
    {
      'hf_in_float64': exact,
      'ours_in_float64_less_that': own - exact,
      'ours_less_that': pairs[i][0][0] - exact,
      'hf_less_that': pairs[i][1][0] - exact,
    }
    for i, own, exact in zip(order, ours, theirs, strict=True)
  ]


def _different_choices(requests: list, pairs: list) -> int:
  """Documents of which the two find another continuation the likeliest."""
  of_document: dict[int, list] = {}
  for request, (ours, theirs) in zip(requests, pairs, strict=True):
    of_document.setdefault(request.doc_id, []).append((ours[0], theirs[0]))
  return sum(
    max(range(len(found)), key=lambda i: found[i][0])
    != max(range(len(found)), key=lambda i: found[i][1])
    for found in of_document.values()
  )


if __name__ == '__main__':
  app.run(main)
