"""Lists the tests that take over 1.5 processor seconds in tests/slow.txt: `make slow-list`.

Processor seconds of one process with kept programs depend little on what else runs. The tests of
this list are marked slow (tests/conftest.py), so that `make test` ends while one thinks.
"""

import pathlib
import time

import pytest

LIMIT = 1.5
FILE = pathlib.Path(__file__).with_name('slow.txt')
_seconds = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
  started = time.process_time()
  yield
  _seconds[item.nodeid] = time.process_time() - started


def pytest_sessionfinish():
  """What was not run stays as it was."""
  slow = set(FILE.read_text('utf-8').splitlines()) - _seconds.keys()
  slow |= {name for name, seconds in _seconds.items() if seconds > LIMIT}
  FILE.write_text('\n'.join(sorted(slow)) + '\n', 'utf-8')
