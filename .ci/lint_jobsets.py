"""Checks the JobSets in YAML files against the types of JobSet and, for the jobs in them, against
Kubernetes' own schema; `make lint-manifests` has what it needs. No cluster is asked.

  python .ci/lint_jobsets.py deploy/*.yaml
"""

import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

# Any text, to the types.
ACTIONS = ('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts')


def check(text: str) -> None:
  """Raises where one of the documents is no JobSet that Kubernetes would take."""
  for jobset in yaml.safe_load_all(text):
    # What the types do not know is dropped by them.
    kept = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    unknown = list(_missing(jobset, kept, 'JobSet'))
    if unknown:
      raise ValueError(f'no such field: {", ".join(unknown)}')
    for rule in jobset['spec'].get('failurePolicy', {}).get('rules', ()):
      if rule['action'] not in ACTIONS:
        raise ValueError(f'failurePolicy: action {rule["action"]} is none of {", ".join(ACTIONS)}')
    for job in jobset['spec']['replicatedJobs']:
      whole = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': job['name']}}
      kubernetes_validate.validate(whole | job['template'], '1.37.0', strict=True)


def _missing(value: Any, kept: Any, place: str) -> Iterator[str]:
  """The places in `value` that `kept` lacks."""
  if isinstance(value, dict):
    for name, inner in value.items():
      if not isinstance(kept, dict) or name not in kept:
        yield f'{place}.{name}'
      else:
        yield from _missing(inner, kept[name], f'{place}.{name}')
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      yield from _missing(inner, kept[i], f'{place}[{i}]')


if __name__ == '__main__':
  for file in sys.argv[1:]:
    with open(file, encoding='utf-8') as lines:
      check(lines.read())
    print(f'{file}: a JobSet')
