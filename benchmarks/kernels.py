"""Decoding as compiled for the present device, beside the prediction made without it.

  python -m benchmarks.kernels --output=kernels.json

A prediction is a row of benchmarks/results/aot_gpu.json for the same kind of device and version of
JAX (benchmarks.aot). Here products are tuned on the device, there they are the defaults.
"""

import json
import pathlib

import jax
from absl import flags

from benchmarks import results
from benchmarks.gpu_programs import TARGETS, decoded, decoding_on, row_label
from configs import latency_smoke
from crt_jax import cli

COMPARED = ('kernels_per_token', 'kernels_run_per_token', 'memory_bytes', 'bytes')
PREDICTIONS = pathlib.Path(__file__).parent / 'results' / 'aot_gpu.json'
MODELS = (
  'crt_d1_c2048',
  'transformer_n6',
  'crt_d5_c1120',
  'transformer_n12',
  'crt_d1_c2048_pallas',
)

_SMOKE = flags.DEFINE_bool('smoke', False, 'One toy: does it run?')


def main(argv: list[str]) -> None:
  del argv
  known = decoded()
  fields = {name: known[name] for name in MODELS}
  if _SMOKE.value:
    fields = {'plain': latency_smoke.get_config().models.plain.to_dict()}
  predictions = json.loads(PREDICTIONS.read_text('utf-8'))['results']
  device, rows = jax.devices()[0], {}
  for name, model in fields.items():
    row = decoding_on(device, model)
    predicted = prediction(predictions, name, device.device_kind)
    rows[name] = row | dict(predicted=compare(row, predicted))
    results.publish(dict(decoding=rows))  # what is there already outlives the next one


def prediction(results: dict, name: str, device_kind: str) -> dict | None:
  """Returns the committed row of a model for such a device and this JAX; None without one."""
  target = next((name for name in TARGETS if name in device_kind.lower()), '')
  return results.get(f'decode {name}', {}).get(row_label(target))


def compare(row: dict, predicted: dict | None) -> dict | str:
  """Returns measured and predicted values of each of COMPARED, or why they cannot be compared."""
  if predicted is None:
    return 'no prediction for this device and version of JAX'
  return {name: dict(here=row[name], predicted=predicted[name]) for name in COMPARED}


if __name__ == '__main__':
  cli.run(main)
