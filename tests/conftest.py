"""What every test runs under: eight fake devices, no silent broadcasting of ranks, steady laws, and
a compiler that is quick rather than good and meets no program twice in a run, since tests compile
much and compute little (measured in docs/LOG.md). Set XLA_FLAGS (also to nothing) to test with
other code, JAX_COMPILATION_CACHE_DIR to keep the programs for the next run.
"""

import atexit
import collections
import os
import pathlib
import shutil
import sys
import tempfile
from importlib.metadata import version

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # `make test-gpu` asks for a GPU
QUICK_COMPILER = '--xla_backend_optimization_level=0'
if version('jaxlib').startswith('0.10.'):  # later ones do not know it, and would end the process
  # One part a program: a tenth less of processor time.
  QUICK_COMPILER += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
MAX_ISA = os.environ.get('MAX_ISA', '')  # `make test-isa` imitates older processors
if MAX_ISA:  # matrix products are oneDNN's, which has its own name for it
  QUICK_COMPILER += f' --xla_cpu_max_isa={MAX_ISA}'
  os.environ['ONEDNN_MAX_CPU_ISA'] = MAX_ISA.replace('SSE4_2', 'SSE41')
os.environ.setdefault('XLA_FLAGS', QUICK_COMPILER)
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # the workers and subprocesses inherit it
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='crt_jax_programs')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

needs_float16 = pytest.mark.skipif(
  MAX_ISA == 'SSE4_2', reason='XLA compiles no float16 for processors without F16C'
)

jax.config.update('jax_num_cpu_devices', 8)  # before the first use of a device
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Entry points are programs of their own and may define the same flags; tests import several.
_set_flag = flags.FlagValues.__setitem__
_DEFINED = collections.defaultdict(dict)  # module -> name -> flag


def _set_flag_again(values, name, flag):
  flag.allow_override = True
  frame = sys._getframe(1)
  while frame.f_globals['__name__'].startswith('absl.'):
    frame = frame.f_back
  _DEFINED[frame.f_globals['__name__']].setdefault(name, flag)
  _set_flag(values, name, flag)


flags.FlagValues.__setitem__ = _set_flag_again


@pytest.fixture(autouse=True, scope='module')
def _own_flags(request):
  """A file of tests sees the flags of the programs that it imports, whatever was imported since."""
  for value in vars(request.module).values():
    for name, flag in _DEFINED.get(getattr(value, '__name__', None), {}).items():
      flags.FLAGS[name] = flag


@pytest.fixture(autouse=True, scope='module')
def _programs_are_let_go():
  """Each compiled program holds pieces of memory of which a process may have 65,530: a worker that
  keeps those of all files crashes in the compiler."""
  yield
  jax.clear_caches()


# The first example of a law compiles, so a deadline would measure XLA; a fixed sequence of examples
# makes a failure everyone's. `pytest --hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile('steady', deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile('search', deadline=None, max_examples=500)
hypothesis.settings.load_profile('steady')

TESTS = pathlib.Path(__file__).parent
LAWS = tuple(TESTS / part for part in ('contract', 'recurrence', 'training/test_step.py'))
SLOW = frozenset((TESTS / 'slow.txt').read_text('utf-8').splitlines())  # by tests/seconds.py


def pytest_itemcollected(item):
  if item.nodeid in SLOW and not item.config.pluginmanager.hasplugin('tests.seconds'):
    item.add_marker('slow')
  if any(item.path.is_relative_to(law) for law in LAWS):
    item.add_marker('laws')


@pytest.fixture
def float16():
  """Skips the test where XLA cannot convert to float16: LLVM then misses __extendhfsf2."""
  if MAX_ISA.startswith('SSE'):
    pytest.skip(f'MAX_ISA={MAX_ISA}: no float16 without the instructions of F16C')


@pytest.fixture
def float64():
  """Runs the test with 64-bit types."""
  with jax.enable_x64(True):
    yield
