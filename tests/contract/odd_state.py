"""A model of a user's own, registered from outside: a CRT whose state is more than caches and a
vector. An LSTM stands behind a layer in its block, and its correction reads a shift register."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import crt_jax
from crt_jax.models import corrections, counts
from crt_jax.models.crt import CRT
from crt_jax.models.layer_stacks import Stack, roformer_stack
from crt_jax.recurrence.state import Carry
from crt_jax.schema import CRTConfig


@dataclasses.dataclass(frozen=True)
class LSTM(Stack):
  """x + LSTM(x), whose heads know nothing of each other; its pair is carried from T to T."""

  config: CRTConfig

  def init(self, key):
    c = self.config
    shapes = dict(
      weight=(4, c.heads, c.head_width, c.width), recurrent=(4, c.heads, c.head_width, c.head_width)
    )
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
      name: (0.3 * jax.random.normal(keys[name], shape)).astype(c.param_dtype)
      for name, shape in shapes.items()
    }

  def axes(self):
    axes = ('gate_up', 'heads', 'head_width')
    return dict(weight=P(*axes, 'width'), recurrent=P(*axes, 'head_width'))

  def block(self, params):
    def one(pair, gates_4xBxHxA):
      h, c = pair
      gates_4xBxHxA += jnp.einsum('bhi,ghai->gbha', h, params['recurrent'])
      write, keep, read = jax.nn.sigmoid(gates_4xBxHxA[:3])
      c = keep * c + write * jnp.tanh(gates_4xBxHxA[3])
      h = read * jnp.tanh(c)
      return (h, c), (h, c)

    def block(x_BxTxC, past=None, key=None):
      before = self.cache(x_BxTxC.shape[0], 0) if past is None else past[0]
      pair = jax.tree.map(lambda a: a.astype(x_BxTxC.dtype), before.value)
      gates_Tx4xBxHxA = jnp.einsum('btc,ghac->tgbha', x_BxTxC, params['weight'])
      _, pairs_TxB = jax.lax.scan(one, pair, gates_Tx4xBxHxA)
      pairs_BxT = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), pairs_TxB)
      z_BxTxC = x_BxTxC + pairs_BxT[0].reshape(x_BxTxC.shape)
      return z_BxTxC, None if past is None else Carry(pairs_BxT)

    return block

  def cache(self, batch, max_len):
    c = self.config
    return Carry((jnp.zeros((batch, c.heads, c.head_width), c.param_dtype),) * 2)


@dataclasses.dataclass(frozen=True)
class LayerAndLSTM(Stack):
  """A RoFormer layer, and an LSTM behind it."""

  stacked = (('layers',),)
  config: CRTConfig

  @property
  def parts(self):
    return dict(layers=roformer_stack(self.config, self.config.layers), lstm=LSTM(self.config))

  def init(self, key):
    keys = jax.random.split(key)
    return {name: part.init(k) for k, (name, part) in zip(keys, self.parts.items(), strict=True)}

  def axes(self):
    return {name: part.axes() for name, part in self.parts.items()}

  def block(self, params):
    def block(x_BxTxC, past=None, key=None):
      entries = {}
      for name, part in self.parts.items():
        own = None if past is None else (past[0][name], *past[1:])
        x_BxTxC, entries[name] = part.block(params[name])(x_BxTxC, own, key)
      return x_BxTxC, None if past is None else entries

    return block

  def cache(self, batch, max_len):
    return {name: part.cache(batch, max_len) for name, part in self.parts.items()}


@dataclasses.dataclass(frozen=True)
class ShiftRegister(corrections.Correction):
  """e + F(LN(m + e)), where m mixes what the last two positions have handed on.

  A position hands on its output and its input; the register holds the outputs, and a count of the
  positions, an integer, weighs the older one.
  """

  def functions(self, params, borrowed):
    _, inject_mixed = super().functions(params, borrowed)

    def summary(z_BxTxC, x_BxTxC, key=None):
      return dict(z=z_BxTxC, x=x_BxTxC)

    def inject(s, e_BxTxC, x_BxTxC, key=None, cache=None):
      batch, length, _ = e_BxTxC.shape
      before = (self.cache(batch, 0) if cache is None else cache[0]).value
      older_BxTxC = jnp.concatenate([before['register'][:, :1], s['z'][:, :-1]], axis=1)
      count_BxT = before['count'][:, None] + jnp.arange(1, length + 1)[None]
      weight_BxTx1 = (1 / count_BxT.astype(e_BxTxC.dtype))[..., None]
      mixed_BxTxC = s['z'] + weight_BxTx1 * older_BxTxC + 0.1 * s['x']
      x_BxTxC, _ = inject_mixed(mixed_BxTxC, e_BxTxC, x_BxTxC, key)
      register_BxTx2xC = jnp.stack([s['z'], older_BxTxC], axis=2)
      after = None if cache is None else Carry(dict(register=register_BxTx2xC, count=count_BxT))
      return x_BxTxC, after

    return summary, inject

  def cache(self, batch, max_len):
    register = jnp.zeros((batch, 2, self.config.width), self.config.param_dtype)
    return Carry(dict(register=register, count=jnp.zeros(batch, jnp.int32)))

  def no_summary(self, batch):
    zeros_BxC = super().no_summary(batch)
    return dict(z=zeros_BxC, x=zeros_BxC)


def counts_of(fields):
  """Those of a CRT, with an LSTM behind its one layer."""
  parts = counts.of_crt(fields)
  lstm = 4 * fields.width * (fields.width + fields.width // fields.heads)
  layers = dataclasses.replace(parts['layers'], matrices=parts['layers'].matrices + lstm)
  return parts | {'layers': layers}


@dataclasses.dataclass(frozen=True)
class OddState(CRT):
  """The model."""

  counts = staticmethod(counts_of)
  make_block: type = LayerAndLSTM
  make_correction: type = ShiftRegister


crt_jax.register('odd_state', OddState)
