"""Every outcome of the rules on made-up records, and what the registered claims ask for."""

import math

import pytest

from crt_jax.cli.user_errors import Mistake
from experiments.claims import __main__ as program
from experiments.claims import budgets, verdicts
from experiments.claims.claim import (
  CONFIRMED,
  MISSING,
  REFUTED,
  UNDECIDED,
  UNSOLVED,
  Comparison,
  alike,
  better_everywhere,
  run_name,
  runs,
)
from experiments.claims.registered import CLAIMS, pointer_chasing, width_growth
from experiments.claims.statistics import Paired
from tests.experiments.claims import toy

LOSSES = {
  CONFIRMED: [2.900, 2.901, 2.902],
  REFUTED: [3.100, 3.101, 3.102],
  UNDECIDED: [2.800, 3.100, 3.000],
}


def scores(crt, layers=(3.0, 3.001, 3.002), **more):
  made = {'crt': crt, 'layers': layers} | more
  return {
    (arm, seed): toy.record(loss)
    for arm, losses in made.items()
    for seed, loss in zip(toy.SEEDS, losses, strict=False)
  }


def judged(found, of=None):
  of = of or toy.claim()
  [one] = verdicts.judge([(of, 'cpu')], {(of.name, 'cpu'): found})
  return one


@pytest.mark.parametrize('verdict', LOSSES)
def test_a_verdict_is_computed(verdict):
  one = judged(scores(LOSSES[verdict]))
  assert one.verdict == verdict and one.level == 0.05
  assert one.missing == {'layers-training': [1, 2, 3]}  # they explain, and decide nothing
  assert (one.seeds_needed is None) == (verdict != UNDECIDED)
  [estimate] = one.estimates
  gain = sum(LOSSES[verdict]) / 3 - 3.001
  assert estimate.seeds.mean == pytest.approx(gain)
  assert estimate.low <= estimate.seeds.low and estimate.high >= estimate.seeds.high


def test_runs_missing_are_named():
  one = judged(scores(LOSSES[CONFIRMED][:2]))
  assert (one.verdict, one.level, one.missing['crt']) == (MISSING, None, [3])
  assert one.estimates[0].count == 2
  assert judged({}).missing.keys() == {'crt', 'layers', 'layers-training'}


def test_the_text_widens_an_interval():
  found = scores(LOSSES[CONFIRMED])
  for (arm, _), record in found.items():
    if arm == 'crt':
      record['results'][1]['means'] = [0.0, 5.9, 3.0]
  one = judged(found)
  assert one.verdict == UNDECIDED and one.estimates[0].high > 0 > one.estimates[0].seeds.high


def test_holm_makes_each_of_several_claims_harder():
  """p = 0.04 alone is confirmed; beside another of 0.04 it is not."""
  differences = (-0.044, -0.06, -0.088)
  found = scores([3.0 + d for d in differences], (3.0, 3.0, 3.0))
  first, second = toy.claim('first'), toy.claim('second')
  alone = judged(found, first)
  assert 0.025 < alone.estimates[0].seeds.p < 0.05 and alone.verdict == CONFIRMED
  records = {('first', 'cpu'): found, ('second', 'cpu'): found}
  both = verdicts.judge([(first, 'cpu'), (second, 'cpu')], records)
  assert [one.verdict for one in both] == [UNDECIDED] * 2
  assert [one.level for one in both] == [0.025] * 2


def estimate(low, high):
  paired = Paired((low + high) / 2, 1.0, 0.5, low, high)
  return verdicts.Estimate(Comparison('', '', ''), paired, verdicts.NOWHERE, 3)


@pytest.mark.parametrize(
  'rule, intervals, verdict',
  [
    (better_everywhere, [(-0.3, -0.1), (-0.2, -0.001)], CONFIRMED),
    (better_everywhere, [(-0.004, 0.1), (0.1, 0.2)], REFUTED),
    (better_everywhere, [(-0.3, -0.1), (0.1, 0.2)], UNDECIDED),
    (better_everywhere, [(-math.inf, math.inf)], UNDECIDED),
    (alike, [(-0.004, 0.004), (-0.001, 0.002)], CONFIRMED),
    (alike, [(-0.004, 0.004), (0.006, 0.1)], REFUTED),
    (alike, [(-0.02, 0.02)], UNDECIDED),
    (pointer_chasing.rule, [(-9, -8), (-4, -1)], CONFIRMED),
    (pointer_chasing.rule, [(-9, -8), (1, 1)], REFUTED),
    (pointer_chasing.rule, [(-9, -8), (0, 0)], UNDECIDED),
    (width_growth.rule, [(-0.05, -0.04), (0, 1), (-0.09, -0.06)], CONFIRMED),
    (width_growth.rule, [(-0.05, -0.04), (0, 1), (-0.03, -0.01)], REFUTED),
    (width_growth.rule, [(-0.05, -0.04), (0, 1), (-0.06, -0.01)], UNDECIDED),
  ],
)
def test_the_rules(rule, intervals, verdict):
  assert rule([estimate(*interval) for interval in intervals]) == verdict


def test_levels_of_a_pointer_chase():
  solved = {'accuracy_L0': 1.0, 'accuracy_L1': 0.2, 'accuracy_final': 0.1, 'solved': 1}
  assert verdicts.loss(solved, UNSOLVED) == 2


def test_of_several_sets_the_one_that_is_asked_for():
  record = toy.record(3.0)
  record['results'] += toy.record(4.0, set='speeches')['results']
  found = [verdicts.row(record, name) for name in ('novel', 'speeches')]
  assert [(row['set'], row['cross_entropy']) for row in found] == [
    ('novel', 3.0),
    ('speeches', 4.0),
  ]
  record['results'].pop()
  record['results'][-1]['is_inference_metric'] = True  # a transformer: parallel alone
  assert verdicts.row(record, 'speeches')['form'] == 'parallel'


def test_steps_follow_from_the_training_flops():
  arms = toy.design().arms
  crt, layers, longer = (budgets.of(arm, arms) for arm in arms)
  per_step = layers.training_flops / layers.steps
  assert abs(longer.training_flops - crt.training_flops) <= per_step / 2
  assert longer.steps == round(10 * crt.training_flops / layers.training_flops) > layers.steps
  assert longer.tokens == longer.steps * 16 * 128
  found = runs(toy.claim(), 'cpu')
  assert found['layers-training', 2].changes == {'seed': 2, 'train.steps': longer.steps}
  assert found['crt', 2].changes == {'seed': 2, 'train.steps': 10}


def test_a_drawn_depth_costs_its_mean():
  small = budgets.config_of(toy.Arm('', f'{toy.SMALL}:D=1,C=32,K=3,kmin=2'))
  fixed = [
    budgets.step_flops(budgets.config_of(toy.Arm('', f'{toy.SMALL}:D=1,C=32,K={K},kmin=0')))
    for K in (2, 3)
  ]
  assert budgets.step_flops(small) == pytest.approx(sum(fixed) / 2)


@pytest.mark.parametrize(
  'name, size',
  [(name, size) for name, one in CLAIMS.items() for size in one.designs if size != 'published'],
)
def test_what_is_registered_can_be_run(name, size):
  """Names are unique, comparisons name arms, something decides, no run is over 20 minutes."""
  claim = CLAIMS[name]
  design = claim.design(size)
  arms = [arm.name for arm in design.arms]
  assert len(set(arms)) == len(arms)
  compared = {name for one in design.comparisons for name in (one.arm, one.against)}
  assert compared <= set(arms)
  assert any(one.decisive for one in design.comparisons)
  assert max(budgets.seconds(arm, design.arms, size) or 0 for arm in design.arms) < 20 * 60
  assert run_name(claim, size, design.arms[0], 42).startswith(f'{claim.owner}-{size}-')


def test_the_headline_compares_equal_heads_at_equal_cost():
  design = CLAIMS['layers_or_recurrence'].design('cpu')
  plain = [budgets.of(arm, design.arms) for arm in design.arms if arm.name.startswith('sotu-')]
  assert {one.width // one.heads for one in plain} == {8}
  body = {
    arm.name: budgets.of(arm, design.arms)
    for arm in design.arms
    if arm.name in ('sotu-crt2', 'sotu-layers4', 'sotu-stateless2', 'sotu-head_ffn2')
  }
  costs = [one.flops for one in body.values()]
  assert max(costs) / min(costs) < 1.02
  assert body['sotu-stateless2'].parameters == body['sotu-crt2'].parameters


def test_a_converted_run_begins_with_one_of_its_seed_and_another_order_of_the_text():
  claim = CLAIMS['conversion']
  found = runs(claim, 'cpu')
  for (arm, seed), run in found.items():
    text, _, kind = arm.partition('-')
    begins = kind not in ('begun', 'scratch')
    assert run.after == (found[f'{text}-begun', seed].name if begins else '')
    assert run.changes['seed'] == seed + begins
  steps = {arm.name: budgets.of(arm, claim.design('cpu').arms) for arm in claim.design('cpu').arms}
  plain, converted = steps['novel-plain-training'], steps['novel-converted']
  assert plain.steps > converted.steps
  assert plain.training_flops == pytest.approx(converted.training_flops, rel=0.01)


def test_mistakes_on_the_command_line(monkeypatch):
  monkeypatch.setattr(program, '_SIZE', type('', (), {'value': 'cpu'}))
  for names, line in ((['toys'], 'is no claim; there are'), (['decode_speed'], 'has no runs at')):
    monkeypatch.setattr(program, '_RUN', type('', (), {'value': names}))
    with pytest.raises(Mistake, match=line):
      program.choose(CLAIMS)
  monkeypatch.setattr(program, '_RUN', type('', (), {'value': ['all']}))
  assert 'both_recurrences' in [one.name for one in program.choose(CLAIMS)]
