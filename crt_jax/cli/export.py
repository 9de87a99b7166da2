"""Write a trained model as a folder that others open:

  crt-export --workdir=runs/smollm2 --output=models/smollm2
  crt-export --workdir=runs/crt --output=models/crt --format=safetensors

In the format huggingface a transformer of style llama or gpt2 becomes a folder that `transformers`
opens with its own classes: config.json, model.safetensors, tokenizer.json. Beside those of a CRT or
a CART lies modeling_crt_jax.py, with which it opens them where trust_remote_code=True. The format
safetensors holds the parameters of any model as they are here, by their paths. crt_jax.load and
crt-convert --source=DIR open all of these and find the same numbers.
"""

from absl import flags

from crt_jax import cli, storage
from crt_jax.convert import FORMATS

_WORKDIR = cli.define_workdir('Directory of the run, which is only read', buckets=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write, which must not exist.')
_FORMAT = flags.DEFINE_enum('format', FORMATS[0], FORMATS, 'Whose names the arrays have.')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest when left out.')


def main(argv: list[str]) -> int | None:
  del argv
  if not _OUTPUT.value:
    raise cli.Mistake('--output is missing, as in --output=models/mine')
  output = storage.local_path('--output', _OUTPUT.value)
  if output.exists():
    raise cli.Mistake(f'--output={_OUTPUT.value} is there already; choose a new folder')
  # Slow imports come after the checks of the flags.
  import jax

  from crt_jax import exporting, loading

  trained = loading.load(_WORKDIR.value, _STEP.value)
  exporting.export(trained, output, _FORMAT.value)
  size = sum(a.size for a in jax.tree.leaves(trained.params))
  print(f'model        {trained.model.config.name} of step {trained.step}, {size:,} parameters')
  print(f'written to   {output}, as {_FORMAT.value}')


def start() -> None:
  """Runs the console script `crt-export`; does not return."""
  cli.run(main)
