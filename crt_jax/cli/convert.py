"""Make a pretrained transformer, or a run, the beginning of a new run, at step 0:

  crt-convert --source=models/SmolLM2-135M --workdir=runs/smollm2
  crt-convert --source=models/SmolLM2-135M --workdir=runs/crt --correction=add
  crt-convert --source=smollm2.gguf --workdir=runs/short --keep_layers=0-5,28,29 --correction=add

A source is a folder as Hugging Face writes it (config.json, safetensors, tokenizer.json), a .gguf
file, or the work directory of a run: Llama, SmolLM, Mistral, Qwen2, Qwen3 and GPT-2. With a
correction it becomes a CRT that computes what the source does until it is trained. crt-generate
and crt-train --mode=eval take the new directory, and --config.train.init_from=DIR trains it.

Text, lengths and evaluation are those of --config, or defaults; its model and tokenizer are not
read.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from crt_jax import cli
from crt_jax.schema.crt import CORRECTIONS
from crt_jax.schema.model import DTYPES

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from crt_jax.loading import Trained
  from crt_jax.types import Params

_CONFIG = cli.define_config(required=False)
_WORKDIR = cli.define_workdir('Directory of the new run, which must not exist')
_SOURCE = flags.DEFINE_string('source', None, 'Hugging Face folder, .gguf file or run; only read.')
_CORRECTION = flags.DEFINE_enum(
  'correction', '', ['', *CORRECTIONS], 'Make it a CRT with this one; a transformer when left out.'
)
_KEEP_LAYERS = flags.DEFINE_string(
  'keep_layers', '', 'Which layers stay, counted from 0, as 0-5,28,29; all when left out.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', '', ['', *DTYPES], 'What to compute in; as the source does, or float32.'
)


def main(argv: list[str]) -> int | None:
  del argv
  if not _SOURCE.value:
    raise cli.Mistake('--source is missing, as in --source=models/SmolLM2-135M')
  if Path(_WORKDIR.value).exists():
    raise cli.Mistake(f'--workdir={_WORKDIR.value} is there already; choose a new directory')
  if '://' not in _SOURCE.value and not Path(_SOURCE.value).exists():
    raise cli.Mistake(
      f'--source={_SOURCE.value} is not there; give a Hugging Face folder, a .gguf file or a run'
    )
  kept = layers(_KEEP_LAYERS.value)
  # Slow imports come after the checks of the flags.
  from crt_jax import loading
  from crt_jax.convert import pretrained
  from crt_jax.training import conversion

  if pretrained.is_pretrained(_SOURCE.value):
    source = pretrained.open_pretrained(_SOURCE.value)
    said = f'{source.family}, numbers stored as {", ".join(source.stored)}'
    trained = loading.read_pretrained(source)
  else:
    trained = loading.load(_SOURCE.value)
    said = f'{trained.model.config.name} of step {trained.step}'
  size = _size(trained.params)
  new = conversion.converted(trained, kept, _CORRECTION.value, _DTYPE.value, _around())
  conversion.begin_run(_WORKDIR.value, new)
  added = _size(new.params.get('correction', {})) if _CORRECTION.value else 0
  print(f'source       {_SOURCE.value}: {said}, {size:,} parameters')
  print(f'model        {new.model.config.name}, {_size(new.params):,} parameters, {added:,} new')
  print(f'tokenizer    {new.tokenizer.vocab_size:,} tokens; {new.model.config.vocab_size:,} fit')
  print(f'differs in   {"; ".join(_differences(trained, new, kept)) or "nothing"}')
  print(f'written to   {_WORKDIR.value}, step 0')


def _around() -> 'ConfigDict | None':
  """Returns the given config with the tokenizer of the source."""
  if _CONFIG.value is None:
    return None
  config = _CONFIG.value.copy_and_resolve_references()
  with config.unlocked():
    config.data.tokenizer = _SOURCE.value
  return config


def _size(params: 'Params') -> int:
  import jax

  return sum(a.size for a in jax.tree.leaves(params))


def _differences(trained: 'Trained', new: 'Trained', kept: tuple[int, ...]) -> list[str]:
  """Returns in words how the new model differs from its source."""
  from crt_jax.models.corrections import variant_of

  config, correction, found = trained.model.config, _CORRECTION.value, []
  if kept:
    found.append(f'layers: {_KEEP_LAYERS.value} of 0-{config.layers - 1}')
  if correction == 'sa':
    found.append("layers: the last one, for which 'sa' attends")
  if correction and not variant_of(correction).can_be_silent:
    found.append(f'function: {correction!r} acts from the start')
  if _DTYPE.value not in ('', config.dtype):
    found.append(f'dtype: {_DTYPE.value}, was {config.dtype}')
  if trained.config.data.separator != new.config.data.separator == 'none':
    found.append("texts: begin without the start token (data.separator='none')")
  return found


def layers(text: str) -> tuple[int, ...]:
  """Returns the numbers that '0-5,28,29' stands for; Mistake unless they ascend."""
  if not text:
    return ()
  found = []
  for part in text.split(','):
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', part.strip())
    if match is None:
      raise cli.Mistake(f'--keep_layers={text}: {part!r} is no number or range, as in 0-5,28,29')
    found += range(int(match[1]), int(match[2] or match[1]) + 1)
  if not found or found != sorted(set(found)):
    raise cli.Mistake(f'--keep_layers={text}: the numbers must rise, as in 0-5,28,29')
  return tuple(found)


def start() -> None:
  """Runs the console script `crt-convert`; does not return."""
  cli.run(main)
