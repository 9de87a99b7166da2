"""How every entry point starts: flags, one line for a user's mistake, and help.

A user's mistake is one line on stderr and exit code 2, before anything is imported or compiled
where flags can tell. `crt_jax/cli/user_errors.py` says what counts as one. `--traceback`, or
CRT_JAX_TRACEBACK=1, shows where it was raised.
"""

import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from logging import LogRecord
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from absl.logging import converter
from ml_collections import ConfigDict, config_flags

from crt_jax import storage
from crt_jax.cli import config_files, help_text
from crt_jax.cli.compile_cache import keep_programs
from crt_jax.cli.config_files import parse_arguments  # noqa: F401, of the public face
from crt_jax.cli.user_errors import Mistake, describe, did_you_mean
from crt_jax.schema.fields import closest

DONE, USER_MISTAKE, INTERRUPTED, PREEMPTED = 0, 2, 130, 75
HELP = re.compile(r'--?(help|helpshort|h|\?)(=true)?')

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are shown in the help of the entry points that define them
flags.DEFINE_bool('traceback', False, 'Show the whole traceback of a mistake.')


class _ConfigParser(flags.ArgumentParser):
  """Loads `--config`, and refuses overrides that name no field before it reads their values."""

  def __init__(self, required: bool, load: Callable[[str], Any]):
    self.required, self.load = required, load
    self.words: list[str] = []  # the command line, in which ml_collections looks for overrides
    self.fields: dict[str, tuple[type, Any]] = {}

  def parse(self, argument: str) -> Any:
    config = self.load(argument)
    self.fields = config_files.fields(config)
    for name in _overrides(self.words):
      if name not in self.fields:
        raise Mistake(self._unknown(name))
    return config

  def flag_type(self) -> str:
    return 'config file'

  def _unknown(self, name: str) -> str:
    members = [field for field in self.fields if field.startswith(f'{name}.')]
    if members:
      return f'--config.{name} is a section; set one of its fields, as in --config.{members[0]}=...'
    match = config_files.closest_field(name, self.fields)
    if match:
      hint = did_you_mean(f'--config.{match}')
    else:
      section = name.rpartition('.')[0]
      siblings = [field for field in self.fields if field.rpartition('.')[0] == section]
      hint = f'; {section or "it"} has {", ".join(siblings)}' if siblings else ''
    return f'--config.{name}: the config has no such field{hint}'


def define_config(
  required: bool = True, load: Callable[[str], Any] = config_files.load
) -> flags.FlagHolder:
  """Defines `--config=FILE[:ARGUMENTS]` and `--config.FIELD=VALUE`.

  Args:
    required: whether the entry point cannot do without; if not, `require_config` asks later.
    load: FILE[:ARGUMENTS] -> the locked ConfigDict whose fields can be set.

  Returns:
    The holder; its `value` is a locked ConfigDict, or None when the flag was left out.
  """
  if 'config' not in FLAGS:
    parser = _ConfigParser(required, load)
    config_flags.DEFINE_config_file(
      'config',
      sys_argv=parser.words,
      help_string='The experiment: FILE, or FILE:NAME=VALUE,... for a file that takes arguments.',
    )
    FLAGS['config'].parser = parser
  return flags.FlagHolder(FLAGS, FLAGS['config'])


def _config_parser() -> _ConfigParser | None:
  parser = FLAGS['config'].parser if 'config' in FLAGS else None
  return parser if isinstance(parser, _ConfigParser) else None


class _WorkdirParser(flags.ArgumentParser):
  """Reads `--workdir`: a folder or, if the entry point supports it, a run in a bucket."""

  def __init__(self, buckets: bool):
    self.buckets = buckets

  def parse(self, argument: str) -> str:
    from crt_jax.runs import bucket

    try:
      if self.buckets and bucket.is_bucket(argument):
        return bucket.check(argument)
      return argument and str(storage.local_path('--workdir', argument))
    except ValueError as error:
      raise Mistake(str(error)) from None


def define_workdir(text: str = 'Directory of the run', buckets: bool = False) -> flags.FlagHolder:
  """Defines `--workdir`, by default `runs/<config name>` if the entry point has a config.

  Args:
    text: the help.
    buckets: whether it may be `gs://BUCKET/RUN`.
  """
  if 'workdir' not in FLAGS:
    default = ' (runs/<config name> when left out)' if 'config' in FLAGS else ''
    flags.DEFINE(_WorkdirParser(buckets), 'workdir', None, f'{text}{default}.')
    flags.DEFINE_multi_string(
      'allow_model',
      [],
      'Model of your own to import, of which the run may be',
    )
  return flags.FlagHolder(FLAGS, FLAGS['workdir'])


def require_config() -> ConfigDict:
  """Returns the config, for entry points that need one only in some modes.

  Raises:
    Mistake: `--config` was left out.
  """
  if FLAGS.config is None:
    raise Mistake('--config is missing, as in --config=configs/quickstart.py; --help lists others')
  return FLAGS.config


def typed_config() -> tuple[str, list[str]]:
  """Returns FILE[:ARGUMENTS] of `--config`, and the fields that the command line sets."""
  holder = FLAGS['config']
  overrides = config_flags.get_override_values(holder)
  return config_flags.get_config_filename(holder), list(overrides)


def refuse_overrides(reason: str, *names: str) -> None:
  """Raises Mistake, with the reason, if a field of the config or one of these flags is given."""
  overrides = FLAGS.config is not None and config_flags.get_override_values(FLAGS['config'])
  given = [name for name in names if FLAGS[name].present]
  for name in [*(f'config.{field}' for field in overrides or ()), *given]:
    raise Mistake(f'--{name} has no effect: {reason}; leave it out')


def run(main: Callable[[list[str]], int | None]) -> None:
  """Reads the flags, runs `main(argv)` under absl, and exits with its code; does not return.

  The module of `main` is the entry point: help shows its docstring and its flags.
  """
  module = sys.modules[main.__module__]
  for stream in (sys.stdout, sys.stderr):  # as in training/terminal.py, which imports JAX
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  keep_programs()  # now, since a config file may import JAX
  try:
    app.run(main, flags_parser=functools.partial(_parse, module))
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(INTERRUPTED)
  except BrokenPipeError:  # `... --help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + 13)
  except Exception as error:
    is_flag = isinstance(error, flags.Error)
    line = _describe_flag_error(error, module) if is_flag else describe(error)
    if line is None:
      raise
    if wants_traceback():
      traceback.print_exc()
    print(f'error: {line}', file=sys.stderr)
    sys.exit(USER_MISTAKE)


def _register_models() -> None:
  """Registers the user's own models.

  These are the models of --allow_model and the one that the config file names, which is code of the
  same user. A run's saved config is never trusted for this.
  """
  allowed = list(FLAGS.allow_model) if 'allow_model' in FLAGS else []
  config = FLAGS.config if 'config' in FLAGS else None
  name = config.get('model', {}).get('name', '') if config is not None else ''
  if ':' in name:
    allowed.append(name)
  if allowed:
    from crt_jax.models.registry import allow

    sys.path.append(os.getcwd())  # a console script does not have it
    for path in allowed:
      allow(path)


def wants_traceback() -> bool:
  """Returns whether the user asked for the traceback of a mistake."""
  return '--traceback' in sys.argv or os.environ.get('CRT_JAX_TRACEBACK', '0') not in ('', '0')


def _parse(module: ModuleType, argv: list[str]) -> list[str]:
  """Parses the command line for absl; raises Mistake or flags.Error, or shows help and exits."""
  parser = _config_parser()
  words = FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
  end = words.index('--') if '--' in words else len(words)
  asks_help = any(HELP.fullmatch(word) for word in words[:end])
  asks_everything = '--helpfull' in words[:end]  # absl would exit with 1
  words = [
    _from_home(w)
    for i, w in enumerate(words)
    if i >= end or not (HELP.fullmatch(w) or w == '--helpfull')
  ]
  if parser is not None:
    words = parser.words[:] = _config_first(words)
  left = FLAGS([argv[0], *words])[1:]
  if asks_help or asks_everything:
    fields = config_files.fields(FLAGS.config) if parser is not None and FLAGS.config else {}
    print(help_text.text(module, fields, asks_everything))
    sys.stdout.flush()
    if asks_everything:
      app.usage(writeto_stdout=True, exitcode=DONE)
    sys.exit(DONE)
  if left:
    advice = f'--config={left[0]}' if left[0].endswith('.py') else '--name=value'
    raise Mistake(f'unexpected argument {left[0]!r}; flags are written {advice}')
  if FLAGS['verbosity'].using_default_value:
    FLAGS.verbosity = -1  # warnings: at INFO, Orbax and absl write hundreds of lines
    logging.get_absl_handler().addFilter(_is_for_people)
  if parser is not None:
    _finish_config(parser)
  _finish_workdir()
  _register_models()
  return argv[:1]


def _from_home(word: str) -> str:
  """Returns a word with ~ expanded in --output=~/x, which no shell does; prompts stay unchanged."""
  name, _, value = word.partition('=')
  if not value.startswith('~/') or name.endswith('prompt'):
    return word
  try:
    return f'{name}={storage.local_path(name, value)}'
  except ValueError as error:
    raise Mistake(str(error)) from None


def _is_for_people(record: LogRecord) -> bool:
  """Returns whether to show a log record; Orbax's warnings need --verbosity=-1."""
  return record.levelno >= converter.STANDARD_ERROR or '/orbax/' not in record.pathname


def _config_first(words: list[str]) -> list[str]:
  """Moves `--config=FILE` before its overrides, where ml_collections wants it."""
  front, rest, i = [], [], 0
  while i < len(words):
    if re.fullmatch(r'--?config', words[i]) and i + 1 < len(words):
      front.append(f'--config={words[i + 1]}')
      i += 1
    elif re.match(r'--?config=', words[i]):
      front.append(words[i])
    elif words[i] == '--':
      rest += words[i:]
      break
    else:
      rest.append(words[i])
    i += 1
  if len(front) > 1:
    raise Mistake(f'--config is given {len(front)} times; give one config file')
  overrides = _overrides(rest)
  if overrides and not front:
    raise Mistake(f'--config.{overrides[0]} is given without --config=FILE')
  return front + rest


def _overrides(words: list[str]) -> list[str]:
  """Returns the field names of all `--config.FIELD=VALUE` and `--noconfig.FIELD`."""
  matches = (re.match(r'--?(?:no)?config\.([^=]*)', word) for word in words)
  return [match[1] for match in matches if match]


def _finish_config(parser: _ConfigParser) -> None:
  """Asks for a missing config, and checks the elements of overridden tuples."""
  if FLAGS.config is None:
    if parser.required:
      require_config()
    return
  typed = {word.lstrip('-') for word in parser.words}
  for name, value in config_flags.get_override_values(FLAGS['config']).items():
    kind, default = parser.fields[name]
    if kind is not tuple:
      continue
    element = type(default[0]) if default and len(set(map(type, default))) == 1 else None
    if element is float:
      value = tuple(float(v) if type(v) is int else v for v in value)
    # An unreadable '(1,' arrives as it was typed. So does a word, which an empty default refuses.
    texts = [v for v in value if isinstance(v, str) and f'config.{name}={v}' in typed]
    is_malformed = any(not default or text[:1] in '([' for text in texts)
    if is_malformed or (element and any(type(v) is not element for v in value)):
      given = value[0] if len(value) == 1 else value
      raise Mistake(_expected(name, given, kind, default))
    with FLAGS.config.unlocked():
      FLAGS.config.update_from_flattened_dict({name: value})


def _finish_workdir() -> None:
  """Sets the default of `--workdir`."""
  if 'workdir' not in FLAGS or FLAGS.workdir:
    return
  if 'config' not in FLAGS:
    raise Mistake('--workdir is missing, as in --workdir=runs/quickstart')
  if FLAGS.config is None:
    raise Mistake('--config or --workdir is missing, as in --config=configs/quickstart.py')
  FLAGS.workdir = f'runs/{config_files.name(config_flags.get_config_filename(FLAGS["config"]))}'


def _expected(name: str, given: Any, kind: type, default: Any) -> str:
  """Returns the message for a value of the wrong type, with the config's own value as example."""
  words = config_files.KINDS.get(kind, kind.__name__)
  example = str(default).lower() if kind is bool else default
  if kind is tuple:
    words += f' of {type(default[0]).__name__}' if default else ''
    example = f"'{default or (1, 2, 5)}'"
  return f'--config.{name}={given}: expected {words}, as in --config.{name}={example}'


def _describe_flag_error(error: flags.Error, module: ModuleType) -> str:
  """Returns one line for an error that absl found in a flag."""
  parser = _config_parser()
  fields = parser.fields if parser is not None else {}
  message = ' '.join(str(error).split())
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    known = [flag for flag in help_text.own_flags(module) if flag != name]
    match = closest(name, known, cutoff=0.7)
    if match is None and fields:
      field = config_files.closest_field(name, fields)
      match = f'config.{field}' if field else None
    return f'unknown flag --{name}{did_you_mean(match and "--" + match)}'
  message = re.sub(
    r'invalid literal for int\(\) .*', f'expected {config_files.KINDS[int]}', message
  )
  message = re.sub(
    r'could not convert string to float.*', f'expected {config_files.KINDS[float]}', message
  )
  missing = re.fullmatch(r'Missing value for flag --([\w.]+)', message)
  if missing:
    _, value = fields.get(missing[1].removeprefix('config.'), (None, 'VALUE'))
    return f'--{missing[1]} has no value, as in --{missing[1]}={value}'
  wrong = re.match(r'flag --config\.([\w.]+)=(.*?): ', message)
  if wrong and wrong[1] in fields:
    return _expected(wrong[1], wrong[2], *fields[wrong[1]])
  return message.removeprefix('flag ')
