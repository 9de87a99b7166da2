"""How the state of a CART grows from loop to loop before any training (cart.md 9.2).

  python -m experiments.state_growth --output=runs/state_growth.json

Root mean square of the state after each loop, at initialisation, for the published size (C=1024,
P=6), with gate and blend, without the gate, and without the blend; random tokens, three seeds. Two
minutes on two cores. The figure lies beside the JSON.
"""

from absl import flags

from crt_jax import cli
from crt_jax.keys import random_key
from crt_jax.types import Array, Params

_OUTPUT = flags.DEFINE_string('output', 'runs/state_growth.json', 'Where the numbers go.')
_WIDTH = flags.DEFINE_integer('width', 1024, 'C, a multiple of 64.')
_PRELUDE_LAYERS = flags.DEFINE_integer('prelude_layers', 6, 'P.', lower_bound=1)
_LOOPS = flags.DEFINE_integer('loops', 16, 'R.', lower_bound=1)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many.', lower_bound=1)
_POSITIONS = flags.DEFINE_integer('positions', 64, 'T.', lower_bound=1)

VARIANTS = {
  'gate and blend': {},
  'no gate': {'gate': False},
  'no blend': {'blend': False},
  'neither, h = core(u)': {'gate': False, 'blend': False, 'core_residual': False},
}


def main(argv: list[str]) -> None:
  del argv
  import pathlib

  from crt_jax import json_text
  from crt_jax.runs.provenance import origin
  from experiments.state_growth import figure

  output = pathlib.Path(_OUTPUT.value)
  output.parent.mkdir(parents=True, exist_ok=True)
  variants = {}
  for name, switches in VARIANTS.items():
    variants[name] = [state_rms(switches, seed) for seed in range(_SEEDS.value)]
    means = [sum(values) / len(values) for values in zip(*variants[name], strict=True)]
    print(f'{name:22}', ' '.join(f'{value:.3g}' for value in means), flush=True)
  sizes = dict(width=_WIDTH.value, prelude_layers=_PRELUDE_LAYERS.value)
  record = {
    'study': 'state_growth',
    'what': 'RMS of e and of the state after loops 1 .. R at initialisation, one list a seed',
    **sizes,
    'loops': _LOOPS.value,
    'positions': _POSITIONS.value,
    'variants': variants,
    'origin': origin(),
  }
  json_text.write(output, record)
  figure.state_growth(record, output.with_suffix(''))
  print(f'written to {output}')


def state_rms(switches: dict, seed: int) -> list[float]:
  """Returns the RMS of the prelude's output and of the state after each loop."""
  import jax
  import jax.numpy as jnp

  import crt_jax
  from crt_jax.runs.train_state import quick_compile

  model = crt_jax.build(
    dict(
      name='cart',
      vocab_size=32_000,
      width=_WIDTH.value,
      prelude_layers=_PRELUDE_LAYERS.value,
      loops=_LOOPS.value,
      **switches,
    )
  )
  params = jax.jit(model.init, compiler_options=quick_compile())(random_key(seed))
  tokens = jax.random.randint(random_key(seed + 1), (1, _POSITIONS.value), 0, 32_000)

  @jax.jit
  def measure(params: Params, tokens: Array):
    parts = model.parts(params)
    e_BxTxC, _ = parts.prelude(parts.embed(tokens))
    states_R = model.hidden(params, tokens, telemetry=True).telemetry['state_rms']
    return jnp.sqrt(jnp.mean(e_BxTxC**2)), states_R

  start, states_R = jax.device_get(measure(params, tokens))
  return [float(start), *states_R.tolist()]


if __name__ == '__main__':
  cli.run(main)
