"""Lists the tests that take over 1.5 processor seconds in tests/slow.txt: `make slow-list`.

Processor seconds of one process with kept programs depend little on what else runs. The tests of
this list are marked slow (tests/conftest.py), so that `make test` ends while one thinks.
"""

import pathlib
import time

import pytest

LIMIT = 1.5
FILE = pathlib.Path(__file__).with_name('slow.txt')
_slow = set()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
  started = time.process_time()
  yield
  if time.process_time() - started > LIMIT:
    _slow.add(item.nodeid)


def pytest_sessionfinish():
  FILE.write_text('\n'.join(sorted(_slow)) + '\n', 'utf-8')
