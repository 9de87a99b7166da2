"""docs/claims.md and the output of --list, computed from the claims and the committed records."""

import functools
import inspect
import math
import os
import pathlib
from collections.abc import Mapping
from fnmatch import fnmatch

from experiments import pages
from experiments.claims import budgets, figure, records, verdicts
from experiments.claims.claim import MISSING, NATS, UNDECIDED, Claim
from experiments.claims.verdicts import Estimate, Judged

DOCS = records.ROOT / 'docs'
HEAD = """\
# The papers' claims

<!-- python -m experiments.claims --report writes this page; do not edit it -->

Every claim of the two papers that runs can decide, with what was published, what can be said \
against it, and a verdict. The rule of each verdict was written before the runs \
(`experiments/claims/registered/`), and `python -m experiments.claims --report` computes all \
numbers here from the records of finished runs in `docs/results/claims/`.

A difference is the loss of the first model less that of the second, paired by seed: the same \
order of the text, the same validation text; below 0 the first is better. Its interval of 95 % \
is the wider, on each side, of that over seeds (Student's t) and that over stretches of the \
validation text (bootstrap, 10 000 draws). Verdicts take wider ones: Holm's procedure over all \
claims whose runs are complete holds the chance of any false confirmation at 5 %; of a claim \
with several decisive comparisons each has to be shown."""
BUDGET_HEAD = (
  'arm',
  'parameters',
  'FLOPs per token, body',
  'with output layer',
  'training FLOPs',
  'steps',
  'tokens',
  'width',
  'heads',
)


def write(
  claims: Mapping[str, Claim],
  kept: pathlib.Path = records.RESULTS,
  docs: pathlib.Path = DOCS,
) -> None:
  """Writes claims.md and figures/claims.png from the committed records.

  A claim is shown at every size that has a record, and at its smallest where none has.
  """
  shown, found = [], {}
  for claim in claims.values():
    for size in claim.designs:
      found[claim.owner, size] = records.read(claim, size, kept)
    recorded = [size for size in claim.designs if found[claim.owner, size]]
    shown += [(claim, size) for size in recorded or list(claim.designs)[:1]]
  judged = verdicts.judge(shown, found)
  parts = [HEAD, summary(claims, judged)]
  if figure.forest(judged, docs / 'figures' / 'claims.png'):
    parts.append('![Decisive comparisons with their intervals.](figures/claims.png)')
  for claim in claims.values():
    parts += section(claim, [one for one in judged if one.claim is claim], found)
  (docs / 'claims.md').write_text(pages.paragraphs(*parts) + '\n', 'utf-8')


def summary(claims: Mapping[str, Claim], judged: list[Judged]) -> str:
  """Returns the table of all claims."""
  rows = []
  for claim in claims.values():
    published = '; '.join(f'{one.what}: {one.value}'.rstrip(': ') for one in claim.published[:2])
    of_claim = [one for one in judged if one.claim is claim]
    for one in of_claim:
      ours = '; '.join(f'{each.comparison.name}: {words(each, claim)}' for each in decisive_of(one))
      rows.append([link(claim), published, ours or '-', f'**{one.verdict}**', one.size])
    for one in claim.measured():
      rows.append([link(claim), published, one.ours, f'**{one.verdict}**', one.where])
  return pages.table(['claim', 'published', 'ours, with 95 % interval', 'verdict', 'size'], rows)


def link(claim: Claim) -> str:
  return f'[{claim.sentence}](#{claim.name})'


def section(claim: Claim, judged: list[Judged], found: Mapping) -> list[str]:
  """Returns the paragraphs of one claim."""
  rule = ' '.join((inspect.getdoc(claim.rule) or '').split())
  parts = [
    f'## {claim.name}',
    f'{claim.sentence} ({claim.where})',
    f'**Hypothesis:** {claim.hypothesis}. **Rule:** {rule}',
    pages.table(
      ['published', 'value', 'evidence', 'where'],
      [[one.what, one.value, one.grade, one.where] for one in claim.published],
    ),
    'What can be said against the published numbers: '
    + '; '.join((*claim.confounds, *claim.controls))
    + '.',
  ]
  for one in judged:
    parts += [f'### Size {one.size}: {one.verdict}', *of_size(one, found[claim.owner, one.size])]
  for one in claim.measured():
    parts += [f'### {one.where}: {one.verdict}', one.text]
  return parts


def of_size(judged: Judged, scores: verdicts.Scores) -> list[str]:
  """Returns the evidence on a claim at one size, and the cost of each arm."""
  claim, design = judged.claim, judged.design
  parts = [standing(judged)]
  if judged.estimates:
    unit = '% of perplexity' if claim.measure == NATS else claim.measure
    rows = [
      [
        one.comparison.name,
        'yes' if one.comparison.decisive else '',
        words(one, claim),
        one.count,
        f'{one.seeds.deviation:.4f}' if one.count > 1 else '',
        f'{one.seeds.p:.2g}' if one.count > 1 else '',
      ]
      for one in judged.estimates
    ]
    head = ['comparison', 'decisive', f'difference ({unit})', 'seeds', 'spread', 'p']
    parts += [pages.table(head, rows), *confounded(judged), *quotable(judged)]
  if claim.shares:
    parts.append(f'The runs and their budgets are those of [{claim.shares}](#{claim.shares}).')
    return parts
  parts.append(pages.table(BUDGET_HEAD, [budget_row(arm, design.arms) for arm in design.arms]))
  if scores:
    hours = sum(record['training_seconds'] for record in scores.values()) / 3600
    devices = sorted({record['origin']['device'] for record in scores.values()})
    parts.append(f'{len(scores)} runs, {hours:.1f} h of training on {", ".join(devices)}.')
  return parts


def confounded(judged: Judged) -> list[str]:
  """Returns what each confound did to the decisive differences, as far as the runs are there."""
  decisive, rows = decisive_of(judged), []
  for confound, pattern in judged.claim.controls.items():
    for one in judged.estimates:
      if fnmatch(one.comparison.name, pattern):
        same = [
          other
          for other in decisive
          if other.comparison.set == one.comparison.set and likeness(one, other)
        ]
        nearest = max(same, key=functools.partial(likeness, one), default=None)
        with_it = words(nearest, judged.claim) if nearest else 'runs missing'
        rows.append([confound, one.comparison.name, with_it, words(one, judged.claim)])
  head = ['confound', 'comparison without it', 'difference with it', 'without it']
  return [pages.table(head, rows)] if rows else []


def likeness(one: Estimate, other: Estimate) -> int:
  """Returns how many letters the arms of two comparisons have in common at their beginning."""
  names = [each.comparison.arm + each.comparison.against for each in (one, other)]
  return len(os.path.commonprefix(names))


def quotable(judged: Judged) -> list[str]:
  """Returns the decisive differences in sentences that can be quoted."""
  claim, of_nats = judged.claim, judged.claim.measure == NATS

  def said(one: Estimate) -> str:
    value, _, interval = words(one, claim).partition(' (')
    seeds = f'{one.count} seeds, 95 % interval {interval[:-1]}' if one.count > 1 else 'one seed'
    return f'{value}{" %" if of_nats else ""} in "{one.comparison.name}" ({seeds})'

  found = '; '.join(map(said, decisive_of(judged)))
  what = 'Perplexity changes by' if of_nats else 'The levels not solved change by'
  verdict = f'"{claim.sentence}" {judged.verdict.capitalize()} at size {judged.size}.'
  return [f'> {verdict} {what} {found}.'] if found else []


def decisive_of(judged: Judged) -> list[Estimate]:
  """Returns the estimates that the rule of the verdict reads, as far as they are there."""
  return [one for one in judged.estimates if one.comparison.decisive]


def standing(judged: Judged) -> str:
  """Returns sentences on missing runs, or on the certainty of the verdict."""
  design, sentences = judged.design, []
  planned = len(design.arms) * len(design.seeds)
  if judged.missing:
    count = sum(map(len, judged.missing.values()))
    decisive = {arm for one in design.comparisons if one.decisive for arm in (one.arm, one.against)}
    waits, rest = [], []
    for arm, seeds in judged.missing.items():
      some = f' (seed {", ".join(map(str, seeds))})' if len(seeds) < len(design.seeds) else ''
      (waits if arm in decisive else rest).append(arm + some)
    sentences.append(f'Missing are {count} of {planned} runs.')
    if waits:
      sentences.append(f'The verdict waits for {", ".join(waits)}.')
    if rest and not judged.claim.shares:
      sentences.append(f'Of the others {", ".join(rest)}.')
  if judged.verdict != MISSING:
    sentences.append(f"Tested at the level {judged.level:.3g} of Holm's procedure.")
  if judged.verdict == UNDECIDED:
    needed = judged.seeds_needed
    sentences.append(
      f'To decide it about {needed} seeds would be needed (80 % power).'
      if needed
      else 'No number of seeds that can be computed from these would decide it.'
    )
  return ' '.join(sentences)


def words(estimate: Estimate, claim: Claim) -> str:
  """Returns a difference and its interval: of perplexity in per cent, or of levels."""
  if claim.measure == NATS:
    mean, low, high = map(per_cent, (estimate.seeds.mean, estimate.low, estimate.high))
  else:
    mean, low, high = estimate.seeds.mean, estimate.low, estimate.high
  if estimate.count == 1:
    return f'{mean:+.2f} (one seed)'
  return f'{mean:+.2f} ({low:+.2f} to {high:+.2f})'


def per_cent(nats: float) -> float:
  """Returns a difference of cross-entropies as a change of perplexity."""
  return 100 * math.expm1(nats) if nats < 100 else math.inf


def budget_row(arm: budgets.Arm, arms: tuple) -> list[str]:
  """Returns what an arm costs, as cells of a table."""
  budget = budgets.of(arm, arms)
  steps = f'{budget.steps:,}' + (f' (as {arm.costs_as})' if arm.costs_as else '')
  return [
    arm.name,
    f'{budget.parameters:,}',
    f'{budget.flops:.3g}',
    f'{budget.flops_with_output:.3g}',
    f'{budget.training_flops:.3g}',
    *(steps, f'{budget.tokens:,}', str(budget.width), str(budget.heads)),
  ]


def listing(claims: Mapping[str, Claim], kept: pathlib.Path = records.RESULTS) -> str:
  """Returns the claims with their sizes, runs, estimated hours, and what is missing."""
  lines, total = [], {'cpu': 0.0, 'gpu': 0.0}
  for claim in claims.values():
    lines.append(f'{claim.name}: {claim.sentence}')
    for size in claim.designs:
      design = claim.design(size)
      count = len(design.arms) * len(design.seeds)
      there = len(records.read(claim, size, kept))
      line = f'  {size:10}{len(design.arms):3} arms x {len(design.seeds)} seeds'
      line += f', {there} of {count} runs finished'
      if claim.shares:
        line += f', those of {claim.shares}'
      elif seconds := [
        one for arm in design.arms if (one := budgets.seconds(arm, design.arms, size)) is not None
      ]:
        hours = sum(seconds) * len(design.seeds) / 3600
        total[size] += hours
        line += f', about {hours:.1f} h, the longest {max(seconds) / 60:.0f} min'
      lines.append(line)
    if not claim.designs:
      lines.append('  no runs: experiments.latency and benchmarks.aot measure it')
  lines.append(f'about {total["cpu"]:.0f} h on two cores in all (size cpu)')
  lines.append(f'about {total["gpu"]:.0f} h on an H100, predicted (size gpu)')
  return '\n'.join(lines)
