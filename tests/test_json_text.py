"""JSON that Python's reader gives up on is one line that names the file, wherever a person gives
it; and every text file is read and written as UTF-8."""

import ast
import json
import pathlib

import pytest

from crt_jax import json_text
from crt_jax.cli import prompt_file
from crt_jax.data import manifest, text_files, tokenizers
from crt_jax.data.token_files import DamagedCache
from crt_jax.evaluation import figures
from crt_jax.runs import metrics, workdir
from experiments.latency import __main__ as latency

REFUSED = {
  'digits': (b'{"step": ' + b'1' * 5000 + b'}', 'a number has too many digits'),
  'nested': (b'{"step": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'it is nested too deeply'),
  'bytes': (b'{"step": 3, "\xff": 1}', 'byte 13 is not UTF-8'),
  'cut': (b'{"step": 3,', 'Expecting property name'),
}
each = pytest.mark.parametrize(('text', 'reason'), REFUSED.values(), ids=REFUSED)
ROW = b'{"step": 2, "device": "cpu", "identity": "a"}'


@each
def test_a_refusal_gives_its_reason_in_one_line(text, reason):
  with pytest.raises(ValueError, match=reason) as raised:
    json_text.parse(text)
  assert type(raised.value) is ValueError and '\n' not in str(raised.value)
  assert raised.value.__cause__ is None


def test_what_can_be_read_is_read():
  expected = {'é': [1, 10**4000, None]}
  text = json.dumps(expected, ensure_ascii=False)
  assert json_text.parse(text) == json_text.parse(text.encode('utf-8')) == expected


@each
def test_places_that_stop_name_the_file(text, reason, tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_bytes(ROW + b'\n' + text + b'\n')
  place = 'is not UTF-8' if reason.startswith('byte') else f'a.jsonl, line 2: not JSON.*{reason}'
  with pytest.raises(ValueError, match=place):
    list(text_files.read_files([file], 'device'))
  with pytest.raises(ValueError, match=f'a.jsonl, line 2: not JSON.*{reason}'):
    figures.training_curve(file, tmp_path / 'a.png', {}, '')
  for name, read in {
    'config.json': lambda: workdir.saved_config(tmp_path),
    tokenizers.DESCRIPTION: lambda: tokenizers.load(tmp_path),
  }.items():
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=reason):
      read()
  manifest.manifest_path(tmp_path).write_bytes(text)
  with pytest.raises(DamagedCache, match=reason):
    manifest.read_manifest(tmp_path)


@each
def test_places_that_go_on_leave_the_line_out(text, reason, tmp_path):
  file = tmp_path / 'metrics.jsonl'
  file.write_bytes(ROW + b'\n' + text + b'\n')
  assert json_text.rows(file) == [json.loads(ROW)]
  assert list(latency._finished(file, dict(device='cpu'))) == ['a']
  metrics.cut_back(file, 9)
  assert file.read_bytes() == ROW + b'\n'
  file.write_bytes(text)
  assert json_text.read(file, 'default') == 'default'


@pytest.mark.parametrize('kind', ('digits', 'nested'))
def test_a_prompt_that_cannot_be_read_is_named_and_skipped(kind, tmp_path):
  text, reason = REFUSED[kind]
  (tmp_path / 'in.jsonl').write_bytes(text + b'\n{"prompt": "b"}\n')
  said = []
  [prompt] = prompt_file.read(str(tmp_path / 'in.jsonl'), lambda text: [1], 9, said.append)
  assert prompt.line == 2
  assert said == [f'{tmp_path}/in.jsonl:1: no JSON ({reason}); skipped']


def test_every_text_file_is_utf_8():
  """A locale decides otherwise: calls without an encoding, found in the source."""
  root = pathlib.Path(__file__).parents[1]
  folders = ('crt_jax', 'experiments', 'configs', 'benchmarks', 'docs')
  files = [file for folder in folders for file in (root / folder).rglob('*.py')]
  found = [
    f'{file.relative_to(root)}:{call.lineno}'
    for file in files
    for call in ast.walk(ast.parse(file.read_text('utf-8')))
    if isinstance(call, ast.Call) and lacks_encoding(call)
  ]
  assert not found
  assert len(files) > 100


def lacks_encoding(call: ast.Call) -> bool:
  """Whether it opens a file, or the output of a process, as text in the locale's encoding."""
  name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
  owner = getattr(getattr(call.func, 'value', None), 'id', '')
  given = {keyword.arg: keyword.value for keyword in call.keywords}
  if 'encoding' in given:
    return False
  if name in ('read_text', 'write_text'):
    return len(call.args) <= (name == 'write_text')
  if name != 'open' or owner in ('os', 'gzip'):
    return 'text' in given and owner == 'subprocess'
  modes = [a.value for a in (*call.args, given.get('mode')) if isinstance(a, ast.Constant)]
  return not any('b' in mode for mode in modes if isinstance(mode, str))


@pytest.mark.parametrize(
  ('call', 'lacks'),
  [
    ('path.read_text()', True),
    ("path.read_text('utf-8')", False),
    ('path.write_text(text)', True),
    ("path.write_text(text, encoding='utf-8')", False),
    ("open(path, 'a')", True),
    ("path.open('rb')", False),
    ('os.open(path, os.O_RDONLY)', False),
    ('subprocess.run(words, text=True)', True),
  ],
)
def test_calls_without_an_encoding_are_recognised(call, lacks):
  assert lacks_encoding(ast.parse(call).body[0].value) == lacks
