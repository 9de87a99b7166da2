"""The table of what lies where, on a mesh without devices."""

from crt_jax import sharding
from crt_jax.runs import train_state
from crt_jax.training import optimizer, sharding_table
from tests.training.fake_model import FakeModel
from tests.training.test_optimizer import optimizer_config

MODEL = FakeModel(vocab=16, width=8)


def abstract(**mesh):
  tx = optimizer.make_optimizer(optimizer_config(), MODEL, 10)
  return train_state.abstract_state(MODEL, tx, sharding.make_abstract_mesh(**mesh))


def test_every_parameter_has_a_line_with_its_shard():
  text = sharding_table.layout(MODEL.axes(), abstract(data=1, fsdp=2, tensor=4))
  lines = {line.split('  ')[0]: line.split() for line in text.splitlines()[3:]}
  assert text.startswith('mesh of 8 devices: data 1, fsdp 2, tensor 4.')
  assert lines['embedding/weight'] == (
    'embedding/weight 16 x 8 vocab x width tensor x fsdp 64 512'.split()
  )
  assert lines['core/bias'] == 'core/bias 8 feed_forward tensor 8 32'.split()
  # embedding 64, core 32 + 8, head 64 + 16 bytes a device
  assert lines['all parameters'][-2:] == ['184', '1,376']


def test_bytes_of_the_optimiser_follow_the_parameters():
  whole, split = abstract(), abstract(fsdp=8)
  params = sharding_table.whole_bytes(whole.params)
  assert (
    sharding_table.shard_bytes(whole.params)
    == sharding_table.whole_bytes(split.params)
    == params
    == 1376
  )
  # Biases of hidden units and vocabulary, 96 bytes, lie whole; there is no tensor axis.
  mine = 96 + (1376 - 96) // 8
  assert sharding_table.shard_bytes(split.params) == mine
  assert 2 * mine <= sharding_table.shard_bytes(split.opt_state) <= 2 * mine + 64  # and counters
