"""From a sweep's directory to records to the page, the same bytes each time."""

import json
import math
import re

import pytest

from experiments import pages, sweep_files
from experiments.claims import disruption, page, readme, records, sweep_file
from experiments.claims.claim import runs
from experiments.claims.registered import CLAIMS, decode_speed
from tests.experiments.claims import toy


@pytest.fixture
def claim():
  return toy.claim()


def written(claims, kept, docs):
  (docs / 'figures').mkdir(parents=True, exist_ok=True)
  page.write(claims, kept, docs)
  figure = docs / 'figures' / 'claims.png'
  return (docs / 'claims.md').read_bytes(), figure.read_bytes() if figure.exists() else b''


def test_the_page_is_the_same_bytes_and_says_what_is_missing(claim, tmp_path):
  losses = {'crt': [2.9, 2.901, 2.903], 'layers': [3.0, 3.0, 3.001]}
  kept = tmp_path / 'kept'
  kept.mkdir()
  (kept / 'toy-cpu.json').write_text(json.dumps(toy.records(claim, losses)))
  claims = {'toy': claim, 'shared': toy.claim('shared', shares='toy')}
  text, figure = written(claims, kept, tmp_path / 'a')
  assert (text, figure) == written(
    {'toy': toy.claim(), 'shared': claims['shared']}, kept, tmp_path / 'b'
  )
  text = text.decode()
  assert figure.startswith(b'\x89PNG') and '(figures/claims.png)' in text
  assert '**confirmed**' in text
  assert 'Missing are 3 of 9 runs. Of the others layers-training.' in text
  assert '> "A toy is better." Confirmed at size cpu. Perplexity changes by -9.4' in text
  assert 'crt - layers | yes | -9.4' in text
  assert f'| {round(10 * flops(text, "crt") / flops(text, "layers"))} (as crt) |' in text
  assert 'The runs and their budgets are those of [toy](#toy).' in text
  assert '6 runs, 0.1 h of training on a processor.' in text


def flops(text, arm):
  """Training FLOPs of an arm in the table of budgets, which shows three digits."""
  [row] = [line for line in text.splitlines() if line.startswith(f'| {arm} |')]
  return float(row.split('|')[5])


def test_a_page_without_any_record(claim, tmp_path):
  text, figure = written({'toy': claim}, tmp_path, tmp_path)
  assert b'**runs missing**' in text and not figure
  assert b'9 of 9 runs. The verdict waits for crt, layers. Of the others layers-training.' in text


def test_one_seed_has_no_interval(claim, tmp_path):
  records = toy.records(claim, {'crt': [2.9], 'layers': [3.0]})
  (tmp_path / 'toy-cpu.json').write_text(json.dumps(records))
  text = written({'toy': claim}, tmp_path, tmp_path)[0].decode()
  assert 'crt - layers | yes | -9.52 (one seed) | 1 |  |  |' in text
  assert '-9.52 % in "crt - layers" (one seed).' in text
  assert not any(word in text for word in ('inf', 'nan', 'finite'))


def test_what_a_confound_did(tmp_path):
  claim = toy.claim(controls={'it trains longer': '*training FLOPs', 'nobody asks': '*nothing*'})
  losses = {'crt': [2.9] * 3, 'layers': [3.0] * 3, 'layers-training': [2.8] * 3}
  (tmp_path / 'toy-cpu.json').write_text(json.dumps(toy.records(claim, losses)))
  text = written({'toy': claim}, tmp_path, tmp_path)[0].decode()
  assert 'it is a toy; it trains longer; nobody asks.' in text
  [line] = [line for line in text.splitlines() if line.startswith('| it trains longer ')]
  assert '| crt - layers, training FLOPs | -9.5' in line and line.count('| +10.5') == 1
  assert '| nobody asks' not in text


def test_a_confound_is_compared_with_the_same_text_alone(tmp_path):
  """Of the other text no decisive runs are there yet."""
  claim, losses = CLAIMS['layers_or_recurrence'], {'crt2': 2.9, 'layers4-training': 2.8}
  kept = {}
  for (arm, _), run in runs(claim, 'cpu').items():
    text, _, kind = arm.partition('-')
    if kind in losses or arm == 'novel-layers4':
      kept[run.name] = toy.record(losses.get(kind, 3.0), sweep_files.flags(run, {}))
  (tmp_path / 'layers_or_recurrence-cpu.json').write_text(json.dumps(kept))
  text = written({'layers_or_recurrence': claim}, tmp_path, tmp_path)[0].decode()
  lines = [line for line in text.splitlines() if line.startswith('| a CRT trains with K passes')]
  assert '| sotu, D=2 - N=4, training FLOPs | runs missing | +10.5' in lines[0]
  assert '| novel, D=2 - N=4, training FLOPs | -9.5' in lines[1]


def test_decode_speed_is_judged_by_what_was_measured(tmp_path):
  """D=1 as fast as published, then slower, then unmeasured; eager PyTorch alone refutes nothing."""

  def row(crt, transformer, times):
    match = {'model': transformer, 'speedup': times, 'torch': times}
    return dict(model=crt, batch=1, context=1, dtype='f', dispatch=16, match=match)

  result = {'config': {'dtypes': ['f']}, 'device': 'a GPU', 'commit': 'abc'}
  result |= {'machine': {'bandwidth': 3e12}}
  for times, verdict in (
    ((2.5, 1.8), 'confirmed'),
    ((2.1, 1.8), 'undecided'),
    ((1.7, 1.2), 'refuted'),
    ((2.5,), 'undecided'),
  ):
    rows = [
      row(*names[:2], x) for names, x in zip(decode_speed.PAIRS.values(), times, strict=False)
    ]
    (tmp_path / 'latency_gpu.json').write_text(json.dumps(result | {'rows': rows}))
    one, expected = decode_speed.measured(tmp_path)
    assert (one.where, one.verdict) == ('a GPU, memory at 3000 GB/s', verdict)
    assert f'| one program for 16 tokens | {times[0]:.2f} |' in one.text
    assert '| eager PyTorch |' in one.text and expected.verdict == 'not measured'


def test_finished_runs_are_collected(claim, tmp_path):
  """One that has not finished, and one with other settings, stay away."""
  named, workdir, kept = runs(claim, 'cpu'), tmp_path / 'runs', tmp_path / 'kept'
  listed = {}
  for (arm, seed), run in named.items():
    folder = workdir / run.name
    folder.mkdir(parents=True)
    listed[run.name] = {'flags': sweep_files.flags(run, {}), 'steps': 10}
    row = {'set': 'novel', 'protocol': 'whole', 'form': 'parallel', 'depth': None}
    row |= {'is_inference_metric': True, 'cross_entropy': 3.123456789, 'perplexity': 22.7}
    row |= {'bits_per_byte': 2.0, 'targets': 250, 'means': [3.0, 3.1, 3.2]}
    evaluation = {'training_seconds': 5.0, 'origin': {'device': 'a', 'command': '/private'}}
    evaluation['results'] = {'sampled': [], 'whole': [row]}
    evaluation['results']['data'] = {'batch_size': 10, 'sequence_length': 10}
    (folder / 'evaluation.json').write_text(json.dumps(evaluation))
    rows = [{'step': 5}, {'step': 10, 'validation_cross_entropy': 3.5}]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    if (arm, seed) != ('crt', 1):
      (folder / 'finished.json').write_text('{}')
  other = named['layers', 2].name
  listed[other]['flags'] = ['--config=other.py']
  (workdir / 'sweep.json').write_text(json.dumps({'config': '', 'runs': listed}))
  assert records.collect([claim], 'cpu', workdir, kept) == 7
  found = records.read(claim, 'cpu', kept)
  assert named.keys() - found.keys() == {('crt', 1), ('layers', 2)}
  record = found['layers', 1]
  assert record['results'][0]['cross_entropy'] == 3.123457
  assert record['results'][0]['batch_tokens'] == 100
  assert record['validation'] == [[10, 3.5]]
  assert '/private' not in (kept / 'toy-cpu.json').read_text()
  assert records.collect([claim], 'cpu', workdir, kept) == 7
  longer = toy.claim()
  longer.designs['cpu'] = lambda: changed(toy.design())
  assert ('crt', 2) not in records.read(longer, 'cpu', kept)


def changed(design):
  """The same design with another length of its first arm."""
  design.arms[0].changes['train.steps'] = 11
  return design


def test_a_sweep_lists_shared_runs_once():
  spec = 'claims=convergence_loss+equal_training+layers_or_recurrence,size=cpu'
  found = sweep_file.get_sweep(spec)
  expected = runs(CLAIMS['convergence_loss'], 'cpu') | runs(CLAIMS['equal_training'], 'cpu')
  assert [run.name for run in found] == [run.name for run in expected.values()]


def test_the_committed_page_is_what_the_records_say(tmp_path):
  text, _ = written(CLAIMS, records.RESULTS, tmp_path)
  assert text == (page.DOCS / 'claims.md').read_bytes(), 'run python -m experiments.claims --report'


def test_the_table_in_readme(tmp_path, monkeypatch):
  path = records.ROOT / 'README.md'
  assert pages.filled(
    path, readme.text(CLAIMS, tmp_path / 'seeds.png'), 'claims'
  ) == path.read_text('utf-8')
  claim = CLAIMS['layers_or_recurrence']
  result = {'set': 'novel', 'form': 'sequential', 'is_inference_metric': True}
  result |= {'means': [0.0], 'batch_tokens': 8, 'targets': 8}
  kept = {
    run.name: {
      'flags': sweep_files.flags(run, {}),
      'results': [
        result | {'cross_entropy': math.log(50 + (seed == 42) + 2 * (arm[6:9] == 'lay'))}
      ],
    }
    for (arm, seed), run in runs(claim, 'cpu').items()
    if arm != 'novel-stateless2' or seed != 42
  }
  (tmp_path / 'layers_or_recurrence-cpu.json').write_text(json.dumps(kept))
  monkeypatch.setattr(records.read, '__defaults__', (tmp_path,))
  lines = readme.text(CLAIMS, tmp_path / 'seeds.png').splitlines()[2:]
  assert lines[2].startswith('| CRT, 2 layers | 1.') and '| 50.33 (50.00 to 51.00) |' in lines[2]
  assert [line.split('|')[1].strip() for line in lines[3:5]] == [
    'transformer, 4 layers',
    'the same, as many training FLOPs as the CRT',
  ]
  assert '| 52.33 (52.00 to 53.00) |' in lines[3] and lines[5] == '', 'a seed is missing'
  less = 100 * (math.exp(-(2 * math.log(52 / 50) + math.log(53 / 51)) / 3) - 1)
  assert re.fullmatch(
    rf'In per cent .* differs by {less:.2f} \(.*\) from the transformer, by {less:.2f} \(.*\) '
    r'from the transformer with as many training FLOPs, by .* \(speeches, .*\), by .* from the '
    r'transformer there, by .* from the transformer with as many training FLOPs there\.',
    lines[6],
  )


def test_disruption_says_how_far_and_how_long(tmp_path):
  """Perplexity 20 becomes 40 at once and 10 in the end, for every seed."""
  claim, figure, kept = CLAIMS['conversion'], tmp_path / 'disruption.png', {}
  curves = {'begun': [30, 20], 'converted': [40, 25, 20, 10], 'plain': [22, 21]}
  for (arm, _), run in runs(claim, 'cpu').items():
    if curve := curves.get(arm.removeprefix('novel-')):
      points = [[10 * (i + 1), math.log(value)] for i, value in enumerate(curve)]
      kept[run.name] = {'flags': sweep_files.flags(run, {}), 'validation': points}
  assert 'not there yet' in disruption.text(CLAIMS, figure, tmp_path) and not figure.exists()
  (tmp_path / 'conversion-cpu.json').write_text(json.dumps(kept))
  text = disruption.text(CLAIMS, figure, tmp_path)
  assert '| with a correction | 40.0 | 10 | 30 | 10.0 |' in text
  assert '| as it is | 22.0 | 10 | never | 21.0 |' in text
  assert '20 steps old' in text and 'of the novel is 20.0; mean of 3 seeds' in text
  assert figure.read_bytes().startswith(b'\x89PNG')
