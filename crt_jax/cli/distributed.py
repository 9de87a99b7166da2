"""Flags that place this process among several, and the context in which they work together.

    distributed.define_flags()

    def main(argv):
      with distributed.joined(stop):   # before anything asks JAX for a device
        ...

Several processes are one run: each is started with the same command and finds the others by its
launcher (Slurm, Open MPI, TPU) or by flags. BUILD.md shows both.
"""

import contextlib
import traceback
from collections.abc import Iterator

from absl import flags

from crt_jax.cli import entry, user_errors
from crt_jax.cluster.preemption import StopSignal

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are shown in the help of the entry points that define them


def define_flags() -> None:
  """Defines `--distributed` and the flags that belong to it."""
  flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'off', 'on'],
    'Whether this is one of several processes of one run: as the launcher says, no, or yes.',
  )
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where all processes meet.')
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process_id', None, 'Which of them this one is, from 0.')
  flags.DEFINE_float('join_timeout', 300.0, 'Seconds to wait for the other processes.', 1.0)


@contextlib.contextmanager
def joined(stop: StopSignal) -> Iterator[None]:
  """Joins the other processes, if any; all of them end together, also if `stop` ends one.

  Raises:
    ValueError: flags or launcher are half of what is needed, or the processes differ.
  """
  from crt_jax.cluster import (
    agreement,
    launcher,  # imported late: flags are checked first
  )

  place = launcher.find_place(
    FLAGS.distributed, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
  )
  if place is None:
    yield
    return
  launcher.join(place, FLAGS.join_timeout)
  with agreement.Companions(stop, _line):
    agreement.require_equal('versions', agreement.software())
    yield


def _line(error: BaseException) -> str | None:
  """Returns the one-line message of a user's mistake, after its traceback if that is requested."""
  line = user_errors.describe(error)
  if line is not None and entry.wants_traceback():
    traceback.print_exception(error)
  return line
