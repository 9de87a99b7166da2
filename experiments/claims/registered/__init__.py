"""The claims, in the order of the papers; each module holds one record."""

from experiments.claims.claim import Claim
from experiments.claims.registered import (
  both_recurrences,
  cart_ablations,
  cart_or_dense,
  convergence_loss,
  conversion,
  decode_speed,
  equal_training,
  layers_or_recurrence,
  parallel_passes,
  pointer_chasing,
  recurrence_or_capacity,
  retrofit,
  width_growth,
)

CLAIMS: dict[str, Claim] = {
  module.CLAIM.name: module.CLAIM
  for module in (
    layers_or_recurrence,
    recurrence_or_capacity,
    equal_training,
    width_growth,
    parallel_passes,
    convergence_loss,
    conversion,
    pointer_chasing,
    cart_or_dense,
    cart_ablations,
    decode_speed,
    both_recurrences,
    retrofit,
  )
}
