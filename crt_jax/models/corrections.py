"""The correction of a CRT and its variants (crt.md 2.5 and 9), one row of VARIANTS each.

A variant is two functions. `summary` is what a position hands to its successor, `inject` makes the
successor's input of it; the paper's CRT has summary z and inject e + F(LN(s + e)). Parallel passes
and the sequential form use the same pair, and s_{-1} = 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crt_jax.layers.norm import Norm
from crt_jax.models.layer_stacks import (
  attention_of,
  empty_cache,
  first_layer,
  roformer_feed_forward,
  with_layer_axis,
)
from crt_jax.models.modules import (
  apply_module,
  axes_of_modules,
  init_modules,
  normed_feed_forward,
)
from crt_jax.schema import CRTConfig
from crt_jax.schema.fields import one_of
from crt_jax.types import Array, Past


@dataclasses.dataclass(frozen=True)
class Network:
  """The modules, parameters, keys and cache that one application of a correction uses.

  Attributes:
    modules, params: by the names of `Variant.parts` and `tied`.
    key, attention_key: dropout keys or None.
    past: what the attention reads of earlier positions; None in parallel passes.
    kernel: `config.decode_kernel`.
  """

  modules: dict
  params: dict
  key: Array | None = None
  attention_key: Array | None = None
  past: Any = None
  kernel: str = 'xla'

  def F(self, u_BxTxC: Array, onto_BxTxC: Array | None = None) -> Array:
    """Returns F(LN(u)), the norm and then the feed-forward network, added to `onto` if given."""
    modules, params = ((of['norm'], of['feed_forward']) for of in (self.modules, self.params))
    return normed_feed_forward(modules, params, u_BxTxC, onto_BxTxC, self.key, self.kernel)

  def attend(self, u_BxTxC: Array) -> tuple[Array, Any]:
    """Returns u + Attention(LN(u)), and the entries for the attention's cache."""
    normed, past = self._apply('attention_norm', u_BxTxC), first_layer(self.past)
    mixed, entries = self._apply('attention', normed, past, key=self.attention_key)
    return u_BxTxC + mixed.astype(u_BxTxC.dtype), with_layer_axis(entries)

  def _apply(self, name: str, *inputs: Any, key: Array | None = None):
    return apply_module(self.modules[name], self.params[name], *inputs, key=key)


# ---- what is handed on: network, z, x -> s -----------------------------------------------------


def output(n: Network, z: Array, x: Array) -> Array:
  return z


def change(n: Network, z: Array, x: Array) -> Array:
  return z - x


def network_of_output(n: Network, z: Array, x: Array) -> Array:
  return n.F(z)


def network_of_change(n: Network, z: Array, x: Array) -> Array:
  return n.F(z - x)


# ---- the next input: network, s, e, what is added to (e, or x if cumulative) -> x, cache entries


def network_of_sum(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, None]:
  return n.F(s + e, base), None


def network_of_token(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, None]:
  return n.F(e, base), None


def network_of_both(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, None]:
  return n.F(jnp.concatenate([s, e], axis=-1), base), None


def network_of_attention(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, Any]:
  w, entries = n.attend(s + e)
  return n.F(w, base), entries


def summary_alone(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, None]:
  return base + s, None


def summary_and_network(n: Network, s: Array, e: Array, base: Array) -> tuple[Array, None]:
  return n.F(s + e, base + s), None


@dataclasses.dataclass(frozen=True)
class Variant:
  """One variant of the correction.

  Attributes:
    summary, inject: its two functions.
    network: which of them F is in: 'inject', 'summary', or '' for none.
    parts: the modules of its own.
    tied: the modules that it borrows from the block's last layer.
    inputs: how many vectors F reads side by side.
    recurrent: whether a position's input depends on its predecessor.
    head_reads_input: the head reads x^(K+1) instead of z^(K).
  """

  summary: Callable
  inject: Callable
  network: str = 'inject'
  parts: tuple[str, ...] = ('norm', 'feed_forward')
  tied: tuple[str, ...] = ()
  inputs: int = 1
  recurrent: bool = True
  head_reads_input: bool = False

  @property
  def can_be_silent(self) -> bool:
    """Whether it adds nothing while F's last layer is zero, so the block's output is the same."""
    adds_summary = self.inject is summary_and_network
    return 'feed_forward' in self.parts and not adds_summary and not self.head_reads_input

  def exact_depth(self, position: int, start: str) -> int:
    """Returns the smallest K from which parallel passes are exact at `position` (0-based)."""
    if not self.recurrent:
      return 1 if start == 'corrected' else 2
    # The summary of position 0 is zero, so without a network in `inject` its first input is final.
    first_is_final = start == 'corrected' or self.network != 'inject'
    passes = position + (1 if first_is_final else 2)
    return max(1, passes - 1) if self.head_reads_input else passes

  def sizes(self, parts: tuple[str, ...]) -> tuple[int, int]:
    """Returns the entries of the parts' matrices in C^2, and their other parameters in C."""
    sizes = {
      'norm': (0, 2 * self.inputs),
      'feed_forward': (4 * self.inputs + 4, 5),
      'attention_norm': (0, 2),
      'attention': (4, 4),
    }
    squares, vectors = (sum(sizes[part][i] for part in parts) for i in (0, 1))
    return squares, vectors


NO_NETWORK = dict(network='', parts=())
VARIANTS = {
  'add': Variant(output, network_of_sum),
  'stateless': Variant(output, network_of_token, recurrent=False),
  'token_blind': Variant(network_of_output, summary_alone, network='summary'),
  'concat': Variant(output, network_of_both, inputs=2),
  'block_head': Variant(change, summary_alone, **NO_NETWORK),
  'nosub': Variant(output, summary_alone, **NO_NETWORK),
  'delta_ffn': Variant(network_of_change, summary_alone, network='summary'),
  'delta_ffn_add': Variant(change, network_of_sum),
  'tied': Variant(output, network_of_sum, parts=('norm',), tied=('feed_forward',)),
  'pure': Variant(output, summary_and_network),
  'tied_pure': Variant(output, summary_and_network, parts=(), tied=('norm', 'feed_forward')),
  'px': Variant(output, network_of_sum, head_reads_input=True),
  'sa': Variant(
    output,
    network_of_attention,
    parts=('norm', 'feed_forward', 'attention_norm', 'attention'),
  ),
}
LAST_LAYER = {'norm': 'norm2', 'feed_forward': 'feed_forward'}  # `tied` parts in that layer


def variant_of(name: str) -> Variant:
  """Returns the variant of this name; ValueError if there is none."""
  one_of('model.correction', name, VARIANTS)
  return VARIANTS[name]


@dataclasses.dataclass(frozen=True)
class Correction:
  """The correction network of a CRT: a variant and its own parameters.

  `CRT.make_correction` can supply another class with these methods and the properties
  `head_reads_input` and `borrows`.
  """

  config: CRTConfig

  @property
  def variant(self) -> Variant:
    return VARIANTS[self.config.correction]

  @property
  def head_reads_input(self) -> bool:
    """Whether the head reads x^(K+1) instead of z^(K)."""
    return self.variant.head_reads_input

  @property
  def borrows(self) -> tuple[str, ...]:
    """The modules of the block's last layer that the correction shares."""
    return self.variant.tied

  def init(self, key: Array) -> dict:
    return init_modules(self._modules(), self.config, key)

  def axes(self) -> dict:
    return axes_of_modules(self._modules(), self.config)

  def functions(self, params: dict, borrowed: dict[str, tuple]) -> tuple[Callable, Callable]:
    """Returns the functions `summary` and `inject` for recurrence/passes.py.

    Args:
      params: from `init`.
      borrowed: (module, parameters) of what it `borrows`.
    """
    variant, config = self.variant, self.config
    modules = self._modules() | {part: borrowed[part][0] for part in self.borrows}
    own = params | {part: borrowed[part][1] for part in self.borrows}
    network = Network(modules, own, kernel=config.decode_kernel)

    def summary(z_BxTxC: Array, x_BxTxC: Array, key: Array | None = None):
      return variant.summary(dataclasses.replace(network, key=key), z_BxTxC, x_BxTxC)

    def inject(
      s_BxTxC: Array,
      e_BxTxC: Array,
      x_BxTxC: Array,
      key: Array | None = None,
      cache: Past | None = None,
    ):
      attention_key = None
      if key is not None and 'attention' in variant.parts:
        attention_key, key = jax.random.split(key)
      here = dataclasses.replace(network, key=key, attention_key=attention_key, past=cache)
      return variant.inject(here, s_BxTxC, e_BxTxC, x_BxTxC if config.cumulative else e_BxTxC)

    return summary, inject

  def cache(self, batch: int, max_len: int) -> Any:
    """Returns the empty cache of what `inject` reads of earlier positions; None if nothing."""
    if 'attention' not in self.variant.parts:
      return None
    config = self.config
    return empty_cache(1, batch, max_len, config.heads, config.head_width, config.dtype)

  def no_summary(self, batch: int) -> Any:
    """Returns the summary that the first position reads."""
    return jnp.zeros((batch, self.config.width), self.config.param_dtype)

  def _modules(self) -> dict:
    """Returns the linen modules that the correction owns, by name."""
    variant, config = self.variant, self.config
    width, in_width = config.width, variant.inputs * config.width
    made = {
      'norm': lambda: Norm(in_width),
      'feed_forward': lambda: roformer_feed_forward(config, in_width, in_width > width),
      'attention_norm': lambda: Norm(width),
      'attention': lambda: attention_of(config),
    }
    return {part: made[part]() for part in variant.parts}
