"""The text of `--help` (one screen) and `--helpfull` (rare flags, all config files and fields)."""

import shlex
import textwrap
from types import ModuleType
from typing import Any

from absl import flags

from crt_jax import schema
from crt_jax.cli import config_files
from crt_jax.program import program

FLAGS = flags.FLAGS
FIELD = 44  # columns of a field and its value
FLAG = 26  # columns of a flag
RARE = (
  'allow_model',
  'coordinator',
  'distributed',
  'join_timeout',
  'num_processes',
  'process_id',
  'reset_optimizer',
  'traceback',
)

METAVARS = {
  'config': 'FILE[:NAME=VALUE,...]',
  'workdir': 'DIR',
  'allow_model': 'MODULE:CLASS',
  'slurm': 'OPTION=VALUE,...',
  'gpus': 'N,N,...',
}
# A console script, and the same program in a clone.
SCRIPTS = {
  'crt-train': 'python -m experiments.main',
  'crt-generate': 'python -m experiments.generate',
  'crt-prepare': 'python -m experiments.prepare',
  'crt-convert': 'python -m experiments.convert',
  'crt-export': 'python -m experiments.export',
  'crt-tasks': 'python -m experiments.tasks',
}
OVERRIDES = """\
Any field of the config can be set on the command line:
  --config.train.steps=50  --config.eval.whole=false  --config.eval.depths='(1,2,5)'
"""
EXIT_CODES = """\
Exit codes: 0 done; 2 a mistake in what was asked, told in one line; 75 stopped and saved, run the
same command again to go on.
"""


def own_flags(module: ModuleType) -> list[str]:
  """Returns the names of the entry point's own flags, in the order of the help."""
  names = {flag.name for flag in FLAGS.get_key_flags_for_module(module)}
  names = {name for name in names if not name.startswith('config.')} | {'traceback'}
  first = ('config', 'workdir', 'mode')
  return sorted(names, key=lambda name: (first.index(name) if name in first else 9, name))


def text(module: ModuleType, fields: dict[str, tuple[type, Any]], is_full: bool = False) -> str:
  """Returns the help; in full and with a config also every field with its type and value."""
  about = (module.__doc__ or '').strip('\n')
  if program() not in SCRIPTS:
    for script, in_a_clone in SCRIPTS.items():
      about = about.replace(script, in_a_clone)
  shown = [name for name in own_flags(module) if is_full or name not in RARE]
  parts = [about, _flags(shown)]
  if 'config' in FLAGS:
    parts.append(OVERRIDES + (_fields(fields) if fields and is_full else _configs(is_full)))
  more = '' if is_full else f'Everything: {program()} --helpfull, and the flags of the libraries.'
  return '\n\n'.join(part.rstrip() for part in [*parts, EXIT_CODES + more] if part)


def _flags(names: list[str]) -> str:
  lines = ['Flags:']
  for name in names:
    flag = FLAGS[name]
    choices = getattr(flag.parser, 'enum_values', None)
    if flag.boolean:
      head = f'--[no]{name}'
    else:
      kind = '|'.join(choices) if choices else METAVARS.get(name) or flag.flag_type().upper()
      head = f'--{name}={kind}'
    default = '' if flag.default in (None, '', False, []) else f' (default: {flag.default})'
    text = ' '.join(f'{flag.help}{default}'.split())
    text = text.removeprefix(f'<{"|".join(choices)}>: ') if choices else text
    wrapped = textwrap.wrap(text, 100 - FLAG)
    first = wrapped.pop(0) if len(head) + 4 <= FLAG else ''
    lines.append(f'  {head:{FLAG - 2}}{first}'.rstrip())
    lines += [' ' * FLAG + line for line in wrapped]
  return '\n'.join(lines)


def _configs(is_full: bool) -> str:
  """Returns each config file with its summary; only the first one in the short help."""
  typed = program()
  same = next((names for names in SCRIPTS.items() if typed in names), (typed,))
  files = config_files.available(same)
  first = next((file for file in files if file.endswith('quickstart.py')), None)
  others = f'  and {len(files) - 1} others, which --helpfull lists'
  if first is not None and len(files) > 1 and not is_full:
    files = {first: files[first]}
  else:
    others = ''
  width = max(map(len, files), default=0)
  lines = [f'  {file:{width}}  {summary}' for file, summary in files.items()]
  listing = ['Config files:', *lines, *filter(None, [others])] if files else []
  hint = 'All fields of one, with their values:'
  return '\n'.join([hint, f'  {typed} --config=FILE --helpfull', '', *listing])


def _fields(fields: dict[str, tuple[type, Any]]) -> str:
  """Returns each field with its value, type and meaning."""
  model = fields.get('model.name', (str, ''))[1]
  lines = []
  for name, (kind, value) in fields.items():
    head = f'  --config.{name}={shlex.quote(str(value))}'
    words = f'{kind.__name__:5}  {schema.meaning(name, model).words()}'
    wrapped = textwrap.wrap(words, 100 - FIELD, subsequent_indent=' ' * 7) or ['']
    if len(head) < FIELD:
      lines.append(f'{head:{FIELD}}{wrapped.pop(0)}')
    else:
      lines.append(head)
    lines += [' ' * FIELD + line for line in wrapped]
  return '\n'.join(['All fields of this config, as the command now sets them:', *lines])
