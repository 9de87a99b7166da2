"""Collectives of compiled programs, counted by hand: through loops, however HLO writes them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import Collective, collectives
from crt_jax import sharding

TPU = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.2 (p: f32[8,4]) -> f32[4,4] {
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice = f32[4,4]{1,0} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={4,4}
}

%stage_1 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %all-gather.1 = bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%stage_2 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %all-gather.2 = bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%cond (t: (s32[], f32[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%t), index=0
  %value = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %one = s32[]{:T(128)} constant(1), metadata={op_name="add"}
  %next = s32[]{:T(128)S(6)} add(%turn, %one), metadata={op_name="while/body/add"}
  %next.copy = s32[]{:T(128)} copy(%next)
  %all-gather-start = (bf16[2,4]{1,0}, bf16[8,4]{1,0:T(8,128)}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %stage = bf16[2,4]{1,0} fusion(%x), calls=%stage_1
  %other_stage = bf16[2,4]{1,0} fusion(%x), calls=%stage_2
  %all-gather-done = bf16[8,4]{1,0} all-gather-done(%all-gather-start)
  %fusion = f32[4,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %tuple = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%next.copy, %value)
}

ENTRY %main (p: f32[8,4]) -> f32[] {
  %while = (s32[], f32[8,4]{1,0}) while(%tuple), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %permute = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  ROOT %all-reduce.9 = (f32[], /*index=1*/f32[3]{0}) all-reduce(%a, %b), replica_groups=mesh['x'=2,'y'=4], device_ids=([2,2,2]T(1,0,2)) {'y'}, to_apply=%add
}
"""  # noqa: E501


def test_every_way_it_is_written():
  assert collectives(TPU) == {
    'all-gather': Collective(10, 10 * 64, 10 * 48),
    'all-reduce': Collective(1, 16, 24),
    'reduce-scatter': Collective(5, 5 * 64, 5 * 64),
    'collective-permute': Collective(1, 16, 16),
  }


SLICES = """\
ENTRY %main (p: f32[8,4]) -> f32[] {
  %inside = f32[8,4]{1,0} all-gather(%p), replica_groups={{0,1},{2,3}}, dimensions={0}
  %sum = f32[8,4]{1,0} all-reduce(%p), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
  %all = f32[8,4]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}
  %part = (f32[8,4]{1,0}, f32[2,4]{1,0}) reduce-scatter-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %named = f32[9] all-reduce(%p), replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}, to_apply=%add
  %other = f32[9] all-reduce(%p), replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}, to_apply=%add
  %send = (f32[2,4]{1,0}, u32[], token[]) send(%p, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_GATHER"}
}
"""  # noqa: E501


def test_what_goes_between_slices():
  """Of two with two devices each: half of what the slice sends to the other."""
  found = collectives(SLICES, [0, 0, 1, 1])
  # One of each slice, two of one, and again one of each.
  assert found['all-reduce'] == Collective(3, 128 + 72, 128 + 72, 128 + 36)
  assert found['reduce-scatter'] == Collective(1, 32, 96, 32)  # 64 for both
  assert found['all-gather'] == Collective(3, 2 * 128 + 64, 64 + 96 + 32, 0 + 32 + 32)
  assert collectives(SLICES)['all-reduce'].network_bytes == 0


def test_unlike_collectives_of_one_channel_both_count():
  text = TPU.replace(
    'bf16[8,4]{1,0} all-gather(%p), channel_id=7', 'bf16[8,8] all-gather(%p), channel_id=7', 1
  )
  longer = collectives(text)['all-gather']
  assert longer == Collective(15, 10 * 64 + 5 * 128, 10 * 48 + 5 * 96)


def test_all_collectives_of_one_channel_count():
  """As shard_map writes them."""

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=sharding.make_mesh(dict(data=4, fsdp=1, tensor=1), jax.devices()[:4]),
    in_specs=P('data'),
    out_specs=(P(), P('data')),
    check_vma=False,
  )
  def function(x):
    whole = jax.lax.all_gather(x, 'data', tiled=True)
    again = jax.lax.all_gather(jnp.sin(whole[:2]), 'data', tiled=True)
    return again, jax.lax.psum_scatter(jnp.cos(whole), 'data', tiled=True)

  text = function.lower(jnp.zeros((8, 3))).compile().as_text()
  assert collectives(text) == {
    'all-gather': Collective(2, 2 * 96, 2 * 72),
    'reduce-scatter': Collective(1, 24, 72),
  }


def test_the_condition_of_a_loop_may_say_its_length():
  text = TPU.replace('"known_trip_count":{"n":"5"}', '')
  assert collectives(text) == collectives(TPU)
  with pytest.raises(ValueError, match='condition cond does not say'):
    collectives(text.replace('direction=LT', 'direction=NE'))
  # Several turns in one: 0, 2 and 4 are below 5.
  longer = collectives(text.replace('constant(1)', 'constant(2)'))
  assert longer['reduce-scatter'] == Collective(3, 3 * 64, 3 * 64)
  with pytest.raises(ValueError, match='body body does not say in which steps'):
    collectives(text.replace(' add(%turn', ' subtract(%turn'))


def test_a_compiled_loop_counts_as_often_as_it_runs():
  """Five products with a weight of [32, 32] that lies on eight devices: gathered five times."""
  mesh = sharding.make_mesh(dict(data=1, fsdp=8, tensor=1), jax.devices()[:8])

  def loop(w_5xCxC, x_BxC):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BxC, w_5xCxC)[0]

  split = jax.NamedSharding(mesh, P(None, 'fsdp', None))
  rows = jax.NamedSharding(mesh, P('fsdp'))
  jitted = jax.jit(loop, in_shardings=(split, rows), out_shardings=rows)
  compiled = jitted.lower(jnp.ones((5, 32, 32)), jnp.ones((64, 32))).compile()
  assert collectives(compiled.as_text()) == {
    'all-gather': Collective(5, 5 * 4096, 5 * 4096 * 7 // 8)
  }
