"""`crt-generate`: what it prints, and what it says to bad input."""

import json

import jax
import ml_collections
import numpy as np
import pytest
import tokenizers as hf
from absl import flags
from absl.testing import flagsaver

import crt_jax
from crt_jax.cli import generate
from crt_jax.cli.generate import StableText
from crt_jax.data.tokenizers import ByteTokenizer, JsonTokenizer
from crt_jax.decoding import continuation
from crt_jax.runs import checkpoint

EOS = 256
FIELDS = dict(name='crt', width=16, heads=2, layers=1, rotary='standard', vocab_size=257)


@pytest.fixture
def run(monkeypatch, capfd):
  """Calls main with these flags on a random model; returns stdout, stderr."""
  flags.FLAGS.mark_as_parsed()
  random = np.random.RandomState(0)
  shapes = jax.eval_shape(crt_jax.build(FIELDS).init, jax.random.key(0))
  params = jax.tree.map(lambda a: random.normal(size=a.shape).astype(a.dtype), shapes)

  def call(**values):
    separator = values.pop('separator', 'none')
    tokenizer = values.pop('tokenizer', ByteTokenizer(bos=None, eos=EOS))
    config = ml_collections.ConfigDict(
      dict(
        model=FIELDS,
        data=dict(sequence_length=64, separator=separator),
        sample=dict(prompt='Call', num_tokens=20, temperature=0.9, top_k=0, top_p=1.0, seed=3),
      )
    ).lock()
    loaded = (config, params, tokenizer, 10)
    monkeypatch.setattr(checkpoint, 'load_params', lambda workdir, step, mesh: loaded)
    with flagsaver.flagsaver(workdir='runs/x', **values):
      generate.main([])
    return capfd.readouterr()

  return call


def test_prints_text_and_speed(run):
  text, log = run()
  assert text.startswith('Call') and len(text) > 20
  assert log.startswith('20 tokens, ') and 'tokens/s' in log
  assert run().out == text
  assert run(seed=4).out != text
  assert run(prompt='Call me').out.startswith('Call me')
  greedy = run(temperature=0.0).out
  assert greedy == run(temperature=0.0, seed=9).out != text


def test_stops_at_the_context_and_says_so(run):
  text, log = run(num_tokens=100)
  assert 'stopped after 60 of 100 tokens' in log and '--context=104' in log
  assert run(num_tokens=60).err.count('\n') == 1, 'all that was asked for: nothing to say'


@pytest.mark.parametrize(
  'values,message',
  [
    (dict(prompt=''), '--prompt is empty'),
    (dict(prompt='x' * 64), '--prompt has 64 tokens, which leaves no room in the context of 64'),
    (dict(top_p=0.0), 'top_p=0.0 must lie in'),
  ],
)
def test_refused(run, values, message):
  with pytest.raises(ValueError, match=f'^{message}') as error:
    run(**values)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'word',
  [
    '--num_tokens=0',
    '--temperature=-1',
    '--top_k=-1',
    '--top_p=1.5',
    '--seed=-1',
    '--batch_size=0',
  ],
)
def test_a_flag_out_of_range_is_refused_while_flags_are_read(word):
  name, value = word.removeprefix('--').split('=')
  with pytest.raises(flags.IllegalFlagValueError, match=word):
    flags.FLAGS[name].parse(value)


def test_no_checkpoint(tmp_path):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(workdir=str(tmp_path / 'none')):
    with pytest.raises(ValueError, match='no checkpoint'):
      generate.main([])


def test_a_file_of_prompts(run, tmp_path):
  """Bad lines are named and skipped; every other line has its text, whatever the batch size."""
  lines = [
    '{"prompt": "Call me"}',
    '{"prompt": ""}',
    'Call',
    '',
    '{"prompt": "a", "more": 1, "line": 9}',
  ]
  lines += ['{"prompt": 3}', json.dumps({'prompt': 'x' * 64}), '{"prompt": "b"}', '[1]']
  prompts, found = tmp_path / 'in.jsonl', {}
  prompts.write_text('\n'.join(lines))
  for size in (2, 8):
    output = tmp_path / f'{size}.jsonl'
    log = run(prompts=str(prompts), output=str(output), batch_size=size).err
    found[size] = [json.loads(line) for line in output.read_text('utf-8').splitlines()]
    skipped = [line.removeprefix(f'{prompts}:') for line in log.splitlines()[:-1]]
    assert [line.split(': ', 1)[0] for line in skipped] == ['2', '3', '6', '7', '9']
    assert 'the prompt is empty; skipped' in skipped[0] and 'no JSON (' in skipped[1]
    assert '64 tokens leave no room in the context of 64' in skipped[3]
    assert log.splitlines()[-1].startswith('3 prompts, 60 tokens, ')
  assert [(r['line'], r['prompt'], r['tokens']) for r in found[2]] == [
    (1, 'Call me', 20),
    (5, 'a', 20),
    (8, 'b', 20),
  ]
  assert found[2] == found[8]
  assert found[2][1]['more'] == 1 and list(found[2][1]) == [
    'line',
    'prompt',
    'text',
    'tokens',
    'more',
  ]
  assert list(found[2][0]) == ['line', 'prompt', 'text', 'tokens']
  assert len({record['text'] for record in found[2]}) == 3
  with pytest.raises(ValueError, match=r'8\.jsonl is there already; give another file'):
    run(prompts=str(prompts), output=str(output))
  assert output.read_text('utf-8').count('\n') == 3


def test_odd_lines_of_a_file_and_an_output_that_is_the_input(run, tmp_path):
  """A byte-order mark is skipped, and a line with half a character reported."""
  prompts, output = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  lines = ['{"prompt": "a"}', r'{"prompt": "\ud800"}', r'{"prompt": "b", "id": "\udc00"}']
  prompts.write_text('\n'.join(lines), 'utf-8-sig')
  log = run(prompts=str(prompts), output=str(output)).err.splitlines()
  assert [line.count('half a character') for line in log] == [1, 1, 0]
  assert log[-1].startswith('1 prompts, ') and json.loads(output.read_text('utf-8'))['line'] == 1
  same = tmp_path / 'folder' / '..' / 'in.jsonl'
  with pytest.raises(ValueError, match='is the file of --prompts'):
    run(prompts=str(prompts), output=str(same))
  assert prompts.read_text('utf-8-sig').count('prompt') == 3


def test_the_text_of_a_file_goes_on_behind_its_prompt(run, tmp_path):
  """Of words whose space is a part of them, which a text does not begin with."""
  words = hf.Tokenizer(hf.models.WordLevel({f'▁{i}': i for i in range(257)}, unk_token='▁0'))
  words.pre_tokenizer, words.decoder = hf.pre_tokenizers.Metaspace(), hf.decoders.Metaspace()
  tokenizer = JsonTokenizer(words.to_str())
  prompts, output = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  prompts.write_text('{"prompt": "5 6"}')
  run(prompts=str(prompts), output=str(output), tokenizer=tokenizer, num_tokens=3)
  record = json.loads(output.read_text('utf-8'))
  assert len((record['prompt'] + record['text']).split(' ')) == 2 + record['tokens'] == 5


def test_a_text_that_changes_its_prompt_begins_where_it_does():
  tokenizer, whole = ByteTokenizer(), list('ab漢c'.encode())
  assert continuation(tokenizer, whole[:4], whole[4:]) == '漢c'
  assert continuation(tokenizer, whole[:2], []) == ''


@pytest.mark.parametrize(
  'values,message',
  [
    (dict(prompts='in.jsonl'), '--prompts and --output go together'),
    (dict(prompts='none.jsonl', output='x', prompt='a'), '--prompt and --prompts are two'),
  ],
)
def test_refused_files(run, values, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    run(**values)


def test_a_file_without_a_usable_line(run, tmp_path):
  prompts = tmp_path / 'in.jsonl'
  prompts.write_text('nothing\n')
  with pytest.raises(ValueError, match='in.jsonl has no usable line; one looks like'):
    run(prompts=str(prompts), output=str(tmp_path / 'out.jsonl'))
  prompts.write_bytes(b'\xff')
  with pytest.raises(ValueError, match='in.jsonl is not UTF-8 text'):
    run(prompts=str(prompts), output=str(tmp_path / 'out.jsonl'))
  with pytest.raises(ValueError, match='^--prompts=.*none.jsonl: no such file$'):
    run(prompts=str(tmp_path / 'none.jsonl'), output=str(tmp_path / 'out.jsonl'))


def test_in_bfloat16(run):
  """Another arithmetic, another text, from the same command otherwise."""
  text, log = run(dtype='bfloat16')
  assert text.startswith('Call') and log.startswith('20 tokens, ')


@pytest.mark.parametrize('size', [1, 2, 3, 7])
def test_no_character_is_printed_before_it_is_complete(size):
  """In pieces of any size, printed parts join to the whole and none has half a character."""
  text = 'naïve – 漢字 🐋 end'
  tokens = list(text.encode())
  stable = StableText(ByteTokenizer())
  parts = [stable.add(tokens[i : i + size]) for i in range(0, len(tokens), size)]
  assert not any('\ufffd' in part for part in parts)
  assert ''.join(parts) + stable.add([], last=True) == text
  if size == 1:
    assert parts.count('') == len(tokens) - len(text)


def test_what_stays_incomplete_is_printed_at_the_end():
  stable = StableText(ByteTokenizer())
  assert stable.add([0x61, 0xE6, 0xBC]) == 'a'
  assert stable.add([], last=True) == '\ufffd'
  stable = StableText(ByteTokenizer())
  # A broken character in the middle is final once something follows it.
  assert [stable.add([token]) for token in (0xE6, 0xBC, 0x61)] == ['', '', '\ufffda']
