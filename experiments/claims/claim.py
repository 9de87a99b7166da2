"""A claim: published numbers, models to train, comparisons and a verdict rule, fixed in advance."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from configs.base import Run

if TYPE_CHECKING:
  from experiments.claims.verdicts import Estimate

SIZES = ('cpu', 'gpu', 'published')
CONFIRMED, REFUTED, UNDECIDED, MISSING = 'confirmed', 'refuted', 'undecided', 'runs missing'
NATS, UNSOLVED = 'nats', 'levels not solved'  # of a token, of a pointer chase; lower is better


@dataclasses.dataclass(frozen=True)
class Published:
  """A number that a paper, or its accompanying material, reports.

  Attributes:
    grade: of the evidence, as in the specs: 'P' paper, 'C' code, 'R' code run by us, 'N' notes.
    where: section of the spec that has it.
  """

  what: str
  value: str
  grade: str
  where: str


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """One model under one recipe, trained once for every seed.

  Attributes:
    config: what to give as --config, without a seed.
    changes: dotted fields that differ from it.
    costs_as: the arm whose training FLOPs this one takes, by its steps; '' = its own steps.
    begins_as: the arm whose trained parameters it begins with, then in another order of the text;
      '' = drawn.
  """

  name: str
  config: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  costs_as: str = ''
  begins_as: str = ''


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The loss of an arm minus that of another, paired by seed: negative is better.

  Attributes:
    set: validation set; '' = the only one.
    decisive: the rule of the verdict reads it; the others explain.
  """

  name: str
  arm: str
  against: str
  set: str = ''
  decisive: bool = False


@dataclasses.dataclass(frozen=True)
class Design:
  """The runs and comparisons at one size."""

  arms: tuple[Arm, ...]
  comparisons: tuple[Comparison, ...]
  seeds: tuple[int, ...] = (42, 137, 271)


@dataclasses.dataclass(frozen=True)
class Measured:
  """What measurements that no run of a claim makes say of it.

  Attributes:
    where: the machine.
    ours: the numbers, in a line.
    text: the numbers, at length.
  """

  where: str
  verdict: str
  ours: str
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Claim:
  """A statement that runs confirm or refute.

  Attributes:
    where: in which paper it stands.
    confounds: what can be said against the published numbers.
    controls: the same, where runs can tell: confound -> pattern of the comparisons without it.
    hypothesis: what the decisive comparisons must show, in a line.
    rule: the decisive estimates (or what is measured) -> CONFIRMED, REFUTED or UNDECIDED; its
      docstring is printed.
    designs: size -> what is run.
    measured: what decides a claim that has no designs.
    measure: NATS or UNSOLVED.
    shares: the claim whose runs these are, where another one has the same designs.
  """

  name: str
  sentence: str
  where: str
  hypothesis: str
  published: tuple[Published, ...]
  confounds: tuple[str, ...]
  rule: Callable[[list[Any]], str]
  designs: Mapping[str, Callable[[], Design]] = dataclasses.field(default_factory=dict)
  measure: str = NATS
  shares: str = ''
  controls: Mapping[str, str] = dataclasses.field(default_factory=dict)
  measured: Callable[[], list[Measured]] = list

  @property
  def owner(self) -> str:
    """The claim after which runs and records are named."""
    return self.shares or self.name

  @functools.cache  # noqa: B019 - there are as many claims as modules
  def design(self, size: str) -> Design:
    """Returns what is run at a size; KeyError where it has none."""
    return self.designs[size]()


def better_everywhere(estimates: list['Estimate'], margin: float = 0.005) -> str:
  """Confirmed where every decisive interval lies below 0 (the arm is better); refuted where every
  one lies above -0.005 nats (half a percent of perplexity: a gain too small to matter, or a loss);
  else undecided."""
  if all(one.high < 0 for one in estimates):
    return CONFIRMED
  return REFUTED if all(one.low > -margin for one in estimates) else UNDECIDED


def alike(estimates: list['Estimate'], margin: float = 0.005) -> str:
  """Confirmed where every decisive interval lies within 0.005 nats of 0 (half a percent of
  perplexity); refuted where one lies beyond; else undecided."""
  if all(-margin < one.low and one.high < margin for one in estimates):
    return CONFIRMED
  beyond = any(one.low > margin or one.high < -margin for one in estimates)
  return REFUTED if beyond else UNDECIDED


def run_name(claim: Claim, size: str, arm: Arm, seed: int) -> str:
  """Returns the name of a run and of its folder."""
  return f'{claim.owner}-{size}-{arm.name}-s{seed}'


def runs(claim: Claim, size: str) -> dict[tuple[str, int], Run]:
  """Returns (arm, seed) -> run of a claim at a size, with the steps that its FLOPs allow."""
  from experiments.claims import budgets

  design = claim.design(size)
  found = {}
  for seed in design.seeds:  # first all arms of one seed: pairs are complete early
    for arm in design.arms:
      steps = budgets.derived_steps(arm, design.arms)
      order = seed + bool(arm.begins_as)
      changes = {**arm.changes, 'seed': order} | ({'train.steps': steps} if arm.costs_as else {})
      before = next((one for one in design.arms if one.name == arm.begins_as), None)
      after = run_name(claim, size, before, seed) if before else ''
      found[arm.name, seed] = Run(run_name(claim, size, arm, seed), arm.config, changes, after)
  return found
