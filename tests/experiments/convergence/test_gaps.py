"""The distance of parallel passes from the recurrence, against the laws that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from experiments.convergence import figure, gaps, page
from tests.recurrence.scaled import BASE, params_of, tokens_of

LENGTH, PASSES = 5, 7


@pytest.fixture(scope='module')
def found():
  with jax.enable_x64(True):
    model = crt_jax.build(BASE)
    tokens = tokens_of(length=LENGTH)
    batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))
    params = params_of(model)
    measured = gaps.against_exact(model, params, batch, PASSES)
    logits = model.sequential(params, tokens)
    return jax.device_get(measured), np.asarray(logits), batch


def test_each_position_becomes_exact_when_the_law_says(found):
  """Position t at K = t + 2 and not before (crt.md 3.1); matrices x4, so nothing contracts."""
  first = gaps.first_exact(found[0]['gap'])
  np.testing.assert_array_equal(first, np.arange(2, LENGTH + 2)[None].repeat(2, 0))
  assert found[0]['change'][:, -1].max() < 1e-9 < found[0]['change'][:, 0].min()


def test_cross_entropies_are_those_of_both_forms(found):
  measured, logits, batch = found
  shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -np.take_along_axis(shifted, np.asarray(batch['targets'])[..., None], -1)[..., 0]
  np.testing.assert_allclose(measured['exact_cross_entropy'], expected, rtol=1e-9)
  np.testing.assert_allclose(measured['cross_entropy'][:, -1], expected, rtol=1e-9)
  assert np.abs(measured['cross_entropy'][:, 0] - expected).min() > 1e-6


def test_summary_by_stretch(found):
  record = gaps.summary(found[0], [0, 2, 5], trained=2)
  assert record['passes_until_exact'] == [2.5, 5.0] and record['unfinished'] == [0, 0]
  assert record['whole_passes_until_exact'] == 3
  np.testing.assert_allclose(record['gap'][1], found[0]['gap'][:, :, 2:].mean(axis=(0, 2)))
  whole = np.exp(found[0]['exact_cross_entropy'][:, :2].mean())
  np.testing.assert_allclose(record['whole_exact_perplexity'], whole)
  assert len(record['ratio']) == PASSES - 1
  short = {name: a[:, :4] if a.ndim == 3 else a for name, a in found[0].items()}
  record = gaps.summary(short, [0, 2, 5], trained=5)
  assert record['whole_passes_until_exact'] is None
  assert record['unfinished'][1] == pytest.approx(2 / 3)


def test_a_late_return_of_the_gap_counts():
  gap_BxKxT = np.array([1.0, 0.0, 1.0, 0.0, 0.0])[None, :, None]
  assert gaps.first_exact(gap_BxKxT) == 4
  assert gaps.first_exact(np.zeros((1, 3, 1))) == 1


def test_stretches_cover_everything():
  edges = gaps.edges_of(4096, 2048)
  assert edges[:4] == [0, 1, 2, 4] and edges[-1] == 4096 and 2048 in edges
  assert edges == sorted(set(edges))
  assert gaps.edges_of(5, 5) == [0, 1, 2, 3, 4, 5]


def test_a_transformer_is_refused():
  model = crt_jax.build(dict(name='transformer', vocab_size=11, width=8, heads=2, layers=1,
                             rotary='integer'))  # fmt: skip
  with pytest.raises(ValueError, match='no recurrence along the sequence'):
    gaps.against_exact(model, {}, {}, 2)


def test_table_and_figure(found, tmp_path):
  run = gaps.summary(found[0], [0, 2, 5], trained=3)
  model = dict(layers=1, width=8, depth=3, depth_min=2)
  record = dict(
    trained_length=3, length=5, edges=[0, 2, 5], passes=PASSES, rows=2, floor=1e-5, origin={},
    config=dict(model=model, data=dict(corpus='moby_dick')),
    runs=[
      run | dict(seed=seed, step=step, whole_exact_perplexity=40.0 + seed)
      for seed in (1, 2) for step in (10, 20)
    ],
  )  # fmt: skip
  table = page.table(record).splitlines()
  assert len(table) == 4 and table[2].startswith('| 10 | 2 |')
  alone = page.table(record | dict(runs=record['runs'][:1]))
  assert ' to ' in table[2] and ' to ' not in alone, 'one seed has no spread'
  figure.convergence(record, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
