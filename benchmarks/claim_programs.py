"""What the claims train at --size=gpu, compiled for a GPU that is not there (benchmarks.aot)."""

from benchmarks.gpu_programs import deepest_flops, device_of, training_on
from experiments.claims import budgets
from experiments.claims.claim import Arm
from experiments.claims.registered import CLAIMS


def claim_of(name: str, target: str) -> dict:
  """Returns the row of the deepest step of `claimed`, with the predicted minutes of each arm."""
  arms, design = claimed()[name]
  config = budgets.config_of(arms[0])
  device = device_of(target)
  found = training_on(device, config)
  share = budgets.step_flops(config) / deepest_flops(config, device)  # of the mean depth
  mean_us = found['predicted_us']['in_graph'] * share
  minutes = {
    arm.name: (budgets.FIXED_SECONDS + 1e-6 * mean_us * budgets.derived_steps(arm, design)) / 60
    for arm in arms
  }
  return found | dict(minutes={name: round(each, 1) for name, each in minutes.items()})


def claimed() -> dict[str, tuple[list[Arm], tuple[Arm, ...]]]:
  """Returns 'CLAIM/ARM' -> the arms of that claim (size gpu) with this program, and all arms."""
  found = {}
  for claim in CLAIMS.values():
    design = claim.design('gpu').arms if 'gpu' in claim.designs and not claim.shares else ()
    alike: dict[str, list[Arm]] = {}
    for arm in design:
      config = budgets.config_of(arm)
      sizes = config.data.batch_size, config.data.sequence_length, config.train.accumulation
      program = f'{config.model.to_json()} {sizes} {config.optimizer.frozen}'
      alike.setdefault(program, []).append(arm)
    found |= {f'{claim.name}/{arms[0].name}': (arms, design) for arms in alike.values()}
  return found
