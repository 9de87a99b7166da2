"""Ends tests in time: `CRT_JAX_TESTS_UNTIL=SECONDS pytest -p tests.budget`, seconds since 1970.

What other parts rest on is tested first. A test that would begin later is skipped, and the summary
says how many were.
"""

import os
import time

import pytest

UNTIL = float(os.environ['CRT_JAX_TESTS_UNTIL'])
FIRST = (
  'layers models contract recurrence training end_to_end decoding runs data evaluation'.split()
)


def pytest_collection_modifyitems(items):
  def order(item):
    folder = item.nodeid.split('/')[1]
    return FIRST.index(folder) if folder in FIRST else len(FIRST)

  items.sort(key=order)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
  if time.time() > UNTIL:
    pytest.skip('NOT RUN, the time for tests is over: `make test-all` runs all of them')
