"""Where compiled programs are kept."""

import os
import subprocess
import sys

import pytest

from crt_jax.cli import compile_cache

CPU = 'processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu {}\nbugs\t\t: spectre_v1{}\n\n'
DIR, SECONDS = 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """Returns the folder that is chosen on a processor, None for none."""
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(compile_cache, '_CPU', tmp_path / 'cpuinfo')

  def on(flags='avx2', bugs='', **environment):
    (tmp_path / 'cpuinfo').write_text(CPU.format(flags, bugs) * 2)
    with monkeypatch.context() as patch:
      for name in (DIR, SECONDS):
        patch.delenv(name, raising=False)
      for name, value in environment.items():
        patch.setenv(name, value)
      compile_cache.keep_programs()
      return os.environ.get(DIR)

  return on


def test_each_kind_of_processor_has_a_folder(kept, tmp_path):
  first, again, other = kept(), kept(), kept(flags='avx512f')
  assert first == again != other
  for folder in (first, other):
    assert os.path.dirname(folder) == str(tmp_path / 'cache' / 'programs')
    assert os.path.isdir(folder)


def test_the_choice_of_the_user_stays(kept, tmp_path):
  assert kept(**{DIR: '/mine'}) == '/mine'
  assert not (tmp_path / 'cache').exists()


def test_a_processor_that_cannot_be_read_is_no_error(kept, tmp_path, monkeypatch):
  for path in ('missing', '.'):  # none outside Linux; a folder cannot be read
    monkeypatch.setattr(compile_cache, '_CPU', tmp_path / path)
    assert kept() is None


def test_nothing_is_kept_where_it_would_not_help(kept, tmp_path):
  assert kept(bugs=' gds') is None
  (tmp_path / 'cache').write_text('a file, so no folder can be made')
  assert kept() is None
  assert kept(CRT_JAX_CACHE='~nobody_of_this_name/cache') is None


def test_what_was_read_longest_ago_is_removed(kept, monkeypatch):
  monkeypatch.setattr(compile_cache, 'LARGEST_BYTES', 250)
  folder = kept()
  for read, name in ((3, 'c'), (1, 'a'), (2, 'b')):
    path = os.path.join(folder, f'{name}-cache')
    with open(path, 'wb') as file:
      file.write(bytes(100))
    os.utime(path, (read, 0))
  kept(flags='another')
  assert sorted(os.listdir(folder)) == ['b-cache', 'c-cache']


def test_an_entry_point_keeps_its_programs(tmp_path):
  (tmp_path / 'cpuinfo').write_text(CPU.format('', ''))
  (tmp_path / 'program.py').write_text(
    'import pathlib\n'
    'from crt_jax.cli import compile_cache, entry\n'
    'compile_cache._CPU = pathlib.Path("cpuinfo")\n'
    'def main(argv):\n'
    '  import jax\n'
    '  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
    '  jax.jit(lambda x: x + 1)(1.0)\n'
    'entry.run(main)\n'
  )
  environment = {name: value for name, value in os.environ.items() if name not in (DIR, SECONDS)}
  subprocess.run(
    [sys.executable, 'program.py'],
    cwd=tmp_path,
    env=environment | {'CRT_JAX_CACHE': str(tmp_path), 'JAX_PLATFORMS': 'cpu'},
    check=True,
  )
  assert list((tmp_path / 'programs').glob('*/jit*-cache'))
