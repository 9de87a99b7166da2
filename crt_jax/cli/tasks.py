"""Score a trained model on tasks of EleutherAI's lm-evaluation-harness:

  crt-tasks --workdir=runs/mine --tasks=piqa,hellaswag,arc_easy --limit=200 --output=scores
  crt-tasks --workdir=runs/mine --tasks=lambada_openai --depth=1,2,4,6 --output=scores

A CRT is scored by its exact recurrence, in which it writes, and with --depth=K by K parallel passes
too; a CART with its own number of loops, or with those of --depth. Below --output lie the harness's
own files, a folder for each of these; tasks.json, which has all scores and where they come from;
and with several depths a figure. A Hugging Face folder or a .gguf file may stand for the run.

Needs the extra: .venv/bin/python -m pip install -e '.[tasks]'. The harness fetches the texts of a
task from the hub of Hugging Face; --include_path takes tasks whose texts are files
(docs/pretrained.md).
"""

from absl import flags

from crt_jax import cli, storage

_WORKDIR = cli.define_workdir('Directory of the run; only read')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest when left out.')
_TASKS = flags.DEFINE_list('tasks', [], 'Names of tasks and groups, as lm_eval has them.')
_INCLUDE_PATH = flags.DEFINE_string('include_path', None, 'Folder of further tasks, in YAML.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder for scores; a new one for each command.')
_DEPTH = flags.DEFINE_list('depth', [], 'Loops R of a CART, or passes K of a CRT, to score with.')
_LIMIT = flags.DEFINE_float(
  'limit', None, 'Documents of each task, or below 1 their share; all when left out.', 0
)
_NUM_FEWSHOT = flags.DEFINE_integer(
  'num_fewshot', None, 'Solved examples before each; as the task says when left out.', 0
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'How many texts are read together.', 1)
_CONTEXT = flags.DEFINE_integer(
  'context',
  None,
  'Most tokens of a text, which is cut on the left; when left out, the length of the training.',
  2,
)
_BOS = flags.DEFINE_bool('bos', True, 'Begin each text as documents began in training.')


def main(argv: list[str]) -> int | None:
  del argv
  if not _TASKS.value:
    raise cli.Mistake('--tasks is missing, as in --tasks=piqa,lambada_openai')
  if not _OUTPUT.value:
    raise cli.Mistake('--output is missing, as in --output=scores')
  if _LIMIT.value == 0:
    raise cli.Mistake('--limit=0 leaves no document; give a number, or a share below 1')
  try:
    depths = [int(depth) for depth in _DEPTH.value]
  except ValueError:
    raise cli.Mistake(
      f'--depth={",".join(_DEPTH.value)}: expected whole numbers, as in --depth=1,2,4'
    ) from None
  output = storage.local_path('--output', _OUTPUT.value)
  if (output / 'tasks.json').exists():
    raise cli.Mistake(f'--output={output} holds scores already (tasks.json); give another folder')
  # Slow imports come after the checks of the flags.
  from crt_jax import evaluation, json_text, loading
  from crt_jax.evaluation import figures, harness
  from crt_jax.runs.provenance import origin
  from crt_jax.training import ending

  names, manager = _TASKS.value, harness.tasks_of(_TASKS.value, _INCLUDE_PATH.value)
  run = loading.load(_WORKDIR.value, _STEP.value)
  model = evaluation.scoring_model(run.model, run.config)
  try:
    forms = harness.task_forms(model, depths)
  except ValueError as error:
    raise cli.Mistake(f'--depth: {error}') from None
  writes = model.has_sequential_form and not (model.recurs_along_sequence and depths)
  harness.check_tasks(manager, names, can_write=writes)
  output.mkdir(parents=True, exist_ok=True)
  context = _CONTEXT.value or run.config.data.sequence_length
  rows, cut = [], 0
  for form in forms:
    scorer = harness.for_harness(
      model,
      run.params,
      run.tokenizer,
      run.config.data.separator if _BOS.value else 'none',
      form,
      context=context,
      batch_size=_BATCH_SIZE.value,
    )
    described = dict(form=form.kind, depth=form.depth)
    described |= dict(is_inference_metric=form.is_inference_metric(model))
    folder = output / (ending.short_form(model, described) if model.passes else '')
    asked = dict(limit=_LIMIT.value, num_fewshot=_NUM_FEWSHOT.value)
    scored = harness.evaluate(scorer, manager, names, _WORKDIR.value, folder, **asked)
    rows += [described | row for row in scored]
    cut = scorer.cut
  record = dict(step=run.step, context=context, cut=cut, rows=rows, origin=origin())
  json_text.write(output / 'tasks.json', record)
  print(ending.table_of_tasks(model, rows))
  if cut:
    print(f'{cut} texts were longer than {context} tokens and were cut on the left')
  if model.passes and len(depths) > 1:
    title, trained = f'{run.config.model.name}, step {run.step}', model.depths() or ()
    figures.scores_against_depth(
      rows, output / 'tasks', record['origin'], title, model.passes.label, trained
    )
  print(f'written to {output}: tasks.json and what the harness writes')


def start() -> None:
  """Runs the console script `crt-tasks`; does not return."""
  cli.run(main)
