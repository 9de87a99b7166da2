"""Refuses stand-in texts in batch jobs, unless the user asked for them by name."""

import os
import re

from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.cli.user_errors import Mistake


def is_batch() -> bool:
  """Returns whether this is a Slurm job, or one of several processes of a run."""
  import jax  # imported late: flags are checked first

  return 'SLURM_JOB_ID' in os.environ or jax.process_count() > 1


def refuse_stand_ins(config: ConfigDict, spec: str, overrides: list[str]) -> None:
  """Raises Mistake if stand-in texts are used that the user did not ask for by name.

  Args:
    config: a complete config.
    spec: FILE[:ARGUMENTS] that it came from.
    overrides: fields set on the command line.
  """
  used = schema.stand_ins(config)
  file, _, arguments = spec.partition(':')
  if not used or re.search(r'(^|,) *data *=', arguments) or 'data.corpus' in overrides:
    return
  begin = f'--config={file}:{arguments}{"," if arguments else ""}data='
  raise Mistake(
    f'{spec} would train on {" and ".join(used)} in place of {config.about.stands_in_for}; a job '
    f'of Slurm, or of several processes, must choose its texts: {begin}published '
    f'(docs/cart.md, 5.2), or {begin}embedded'
  )
