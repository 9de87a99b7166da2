"""What a person reads when a run has ended."""

import sys

import crt_jax
from crt_jax import schema
from crt_jax.training import ending

CRT = crt_jax.build(
  schema.crt_model(layers=1, width=8, heads=2, depth=3, rotary='integer') | {'vocab_size': 9}
)


def row(form, depth, score, name='whale', protocol='whole', used=True, **more):
  scores = {'perplexity': 10 * score, 'bits_per_byte': score, 'targets': 46_310}
  same = {'set': name, 'protocol': protocol, 'form': form, 'depth': depth}
  return {**same, **scores, 'is_inference_metric': used, **more}


def test_one_number_and_a_table_that_a_stranger_can_read():
  results = {
    'sampled': [row('parallel', 3, 2.5, protocol='random')],
    'whole': [
      row('parallel', 1, 3.0, used=False),
      row('parallel', 3, 2.25),
      row('sequential', None, 2.2),
    ],
  }
  said = ending.scores(CRT, results).splitlines()
  assert said[0] == 'bits per byte: 2.200 on whale, by exact recurrence'
  assert said[-6:] == [
    'text   scored          tokens  the model as           perplexity  bits per byte',
    'whale  random windows  46,310  K=3 parallel passes        25.000         2.5000',
    'whale  all of it       46,310  K=1 parallel passes *      30.000         3.0000',
    'whale  all of it       46,310  K=3 parallel passes        22.500         2.2500',
    'whale  all of it       46,310  exact recurrence           22.000         2.2000',
    '* not a way to write text with it',
  ]


def test_several_sets_are_scored_as_the_model_is_used():
  rows = [row('parallel', k, k + 0.5, name=name) for name in ('a', 'b') for k in (1, 3, 6)]
  said = ending.headline(CRT, {'sampled': rows})
  assert said.startswith('bits per byte: 3.500 on a, 3.500 on b, by K=3 parallel passes\n')


def test_answers_are_counted_where_a_task_has_some():
  rows = [row('parallel', 3, 0.1, accuracy_level_0=1.0, accuracy_final=0.25, solved=1)]
  said = ending.scores(CRT, {'sampled': rows})
  assert said.startswith('solved: 1 of 2 answers of whale, by K=3 parallel passes\n')
  assert said.endswith('1.00 0.25') and 'right answers' in said


def test_what_to_type_next(tmp_path, monkeypatch):
  """Each command runs as it is printed, where no environment is activated."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'executable', f'{tmp_path}/.venv/bin/python')
  monkeypatch.setenv('PATH', '/nowhere')
  monkeypatch.setattr(ending.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(ending, 'program', lambda: 'python -m experiments.main')
  config = schema.experiment(schema.crt_model(layers=1, width=8, heads=2, rotary='integer'))
  config.sample.prompt = "Call 'me'"
  said = ending.next_commands(CRT, config, 'runs/a b')
  generate, look, evaluate = said.splitlines()[1:]
  assert generate.startswith('  .venv/bin/python -m experiments.generate --workdir=')
  assert """--workdir='runs/a b' --prompt='Call '"'"'me'"'"''""" in generate
  assert look.startswith('  .venv/bin/python -m pip install -e ') and '[tensorboard]' in look
  assert " && .venv/bin/tensorboard --logdir='runs/a b'/tensorboard" in look
  assert evaluate.startswith('  .venv/bin/python -m ') and '--mode=eval' in evaluate
  monkeypatch.setattr(ending.importlib.util, 'find_spec', lambda name: name)
  assert 'pip' not in ending.next_commands(CRT, config, 'runs/a b')


def test_a_sample_is_a_text():
  assert ending.sample('Call me\nIshmael') == '\n  Call me\n  Ishmael\n'
