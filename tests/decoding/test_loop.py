"""Generated text against the slow obvious loop, and all that must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax import decoding
from crt_jax.decoding import loop
from crt_jax.decoding.prepare import empty_state
from crt_jax.recurrence import state as recurrence_state
from tests.conftest import QUICK_COMPILER

VOCABULARY = 19
PROMPTS = [[1, 2, 3], [4] * 70, [5, 6]]
SAMPLING = decoding.Sampling(temperature=2.0, top_k=12, top_p=0.95)


def make(name):
  """A model with weights so large that the next token depends on more than the one before it."""
  fields = dict(vocab_size=VOCABULARY, width=16, heads=2, layers=1, rotary='standard')
  model = crt_jax.build(dict(name=name, **fields))
  random = np.random.RandomState(0)

  def draw(path, shape):
    scale = 0 if path[-1].key == 'bias' else 1
    return (scale * random.normal(size=shape.shape)).astype(shape.dtype)

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope='module')
def model_and_params():
  return make('crt')


@pytest.fixture
def generate(model_and_params):
  """Contexts up to 128 and chunks of 5 share their compiled functions."""
  return functools.partial(
    decoding.generate, *model_and_params, context=128, sampling=SAMPLING, chunk=5
  )


@pytest.mark.parametrize(
  'name,sampling',
  [('crt', SAMPLING), ('crt', decoding.Sampling(temperature=0)), ('transformer', SAMPLING)],
)
def test_ragged_batch_in_chunks_is_the_obvious_loop(name, sampling):
  """Which evaluates the whole text anew for each token."""
  model, params = make(name)
  texts = decoding.generate(
    model, params, PROMPTS, 12, context=128, sampling=sampling, seed=7, chunk=5
  )
  keys = decoding.row_keys(7, jnp.arange(3))
  padded = np.zeros((3, 96), np.int32)
  lengths = np.array([len(prompt) for prompt in PROMPTS])
  for row, prompt in enumerate(PROMPTS):
    padded[row, : len(prompt)] = prompt
  for _ in range(12):
    logits = model.sequential(params, padded)[np.arange(3), lengths - 1]
    padded[np.arange(3), lengths] = decoding.sample(sampling, logits, decoding.noise(keys, lengths))
    lengths += 1
  for row, prompt in enumerate(PROMPTS):
    assert texts[row] == padded[row, len(prompt) : lengths[row]].tolist()
  assert len(set(sum(texts, []))) > 3, 'a text this monotonous tests nothing'


def test_slots_that_hold_nothing_need_not_be_read(generate, monkeypatch):
  """From 2 slots on, four times as many whenever the text has outgrown them."""
  whole = generate(PROMPTS[::2], 20)
  monkeypatch.setattr(recurrence_state, 'SEEN', 2)
  state = empty_state(*make('crt'), 1, 128)
  assert [state.seeing(end).seen for end in (1, 3, 32, 33)] == [2, 8, 32, None]
  assert generate(PROMPTS[::2], 20) == whole


def test_text_depends_on_neither_chunk_nor_neighbours(generate):
  together = generate(PROMPTS, 20)
  assert together == generate(PROMPTS, 20, chunk=32)
  assert [together[1]] == generate(PROMPTS[1:2], 20, rows=[1])
  assert [together[1]] != generate(PROMPTS[1:2], 20, rows=[0])
  assert together != generate(PROMPTS, 20, seed=1)


def test_context_ends_each_row_where_it_is_full(generate):
  """The last token that fits is right, though the chunk runs on past the end of the caches."""
  long = generate(PROMPTS, 125)
  assert [len(text) for text in long] == [125, 58, 125]
  short = generate(PROMPTS, 125, context=72)
  assert short == [long[0][:69], long[1][:2], long[2][:70]]


def test_parallel_prefill_of_a_prompt_whose_padding_passes_the_context():
  model, params = make('transformer')
  write = functools.partial(decoding.generate, model, params, context=134, sampling=SAMPLING)
  for rows in (1, 2, 3):
    prompts = [[1 + row] * length for row, length in enumerate((129, 70, 1))][:rows]
    assert write(prompts, 5, prefill='parallel') == write(prompts, 5)


def test_stop_tokens_end_a_row_and_the_run(model_and_params, generate):
  plain = generate(PROMPTS, 30)
  stop = plain[0][7]
  for text, cut in zip(plain, generate(PROMPTS, 30, stop_tokens=[stop]), strict=True):
    assert cut == text[: text.index(stop) if stop in text else 30]
  # Once every row is over, no chunk follows.
  everything = decoding.stream(
    *model_and_params, PROMPTS, 50, context=128, sampling=SAMPLING, chunk=5, stop_tokens=range(19)
  )
  assert list(everything) == [[[], [], []]]


def test_tokens_come_as_they_are_made(generate):
  seen = []
  texts = generate(PROMPTS, 12, on_tokens=seen.append)
  assert [[len(new) for new in rows] for rows in seen] == [[5] * 3, [5] * 3, [2] * 3]
  assert [sum(new, []) for new in zip(*seen, strict=True)] == texts


def test_prepared_parameters_write_the_same_text(model_and_params):
  model, params = model_and_params
  options = dict(context=128, sampling=SAMPLING, chunk=5)
  expected = decoding.generate(model, params, PROMPTS, 20, **options)
  assert decoding.generate(*decoding.prepare(model, params), PROMPTS, 20, **options) == expected


def test_no_compilation_for_another_length(generate):
  compiled = []
  generate([[1] * 100], 10)

  def listen(event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  for length in (1, 64, 65, 127):
    generate([[1] * length], 10)
  assert not compiled
  jax.jit(lambda x: x + len(compiled))(1)
  assert compiled, 'the listener hears nothing any more: find the new name of the event'


@pytest.mark.parametrize('is_prepared', (False, True))
def test_state_is_donated(model_and_params, is_prepared):
  """As many bytes are aliased as state and logits have; prepared, no cache is copied either."""
  model, params = model_and_params
  if is_prepared:
    model, params = decoding.prepare(model, params)
  state = empty_state(model, params, 2, 4096)
  state, logits = model.prefill(params, state, jnp.array([[1, 2], [3, 4]]))
  key = decoding.row_keys(0, jnp.arange(2))
  lowered = loop.chunk_decoder('cpu').lower(model, SAMPLING, 4, params, key, state, logits)
  options = {'xla_backend_optimization_level': 3}
  if 'fusion_emitters' in QUICK_COMPILER:
    options['xla_cpu_use_fusion_emitters'] = True
  memory = lowered.compile(compiler_options=options).memory_analysis()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves((state, logits)))
  assert memory.alias_size_in_bytes == size
  if is_prepared:
    assert memory.temp_size_in_bytes < state.caches['block'][0]['k'].nbytes


@pytest.mark.parametrize(
  'prompts,options,message',
  [
    ([], {}, 'there is no prompt'),
    ([[1], []], {}, 'prompt 1 is empty'),
    ([[1] * 8], {}, 'prompt 0 has 8 tokens, which leaves no room in the context of 8'),
    ([[1, 19]], {}, 'prompt 0 has token 19 outside the vocabulary of 19'),
    ([[-1, 1]], {}, 'prompt 0 has token -1 outside'),
    ([[1]], dict(num_tokens=0), 'num_tokens=0'),
    ([[1]], dict(prefill='fast'), "method='fast'"),
  ],
)
def test_refused_before_anything_runs(model_and_params, prompts, options, message):
  with pytest.raises(ValueError, match=message):
    decoding.stream(*model_and_params, prompts, **(dict(num_tokens=4, context=8) | options))


def test_float64_parameters(model_and_params, generate):
  model, params = model_and_params
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    texts = decoding.generate(model, wide, PROMPTS, 6, context=96)
  assert [len(text) for text in texts] == [6, 6, 6]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_logits_that_are_not_finite_end_it(model_and_params, generate, bad, temperature):
  """Whatever the rule, in the row that has them; a row that has ended does not count."""
  model, params = model_and_params
  weight = jnp.asarray(params['embedding']['weight']).at[7].set(bad)  # only a text with 7 reads it
  broken = {**params, 'embedding': {'weight': weight}}
  rest = dict(context=128, sampling=decoding.Sampling(temperature=temperature), chunk=5)
  with pytest.raises(decoding.NotFinite, match='^prompt 1: the logits of the model are not finite'):
    decoding.generate(model, broken, [[1, 2], [3, 7]], 3, **rest)


def test_only_tokens_that_are_given_out_have_to_be_finite():
  left = np.array([2, 3, 3])
  tokens_BxN = jnp.array([[4, 5, -1], [6, 0, -1], [1, 2, 3]])  # behind the budget, behind a stop
  assert loop._take(tokens_BxN, left, frozenset([0])) == [[4, 5], [6], [1, 2, 3]]
  with pytest.raises(decoding.NotFinite, match='prompt 0'):
    loop._take(jnp.array([[4, -1]]), np.array([2]), frozenset([0]))
