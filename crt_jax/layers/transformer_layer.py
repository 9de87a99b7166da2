"""One pre-norm transformer layer, in all styles that models stack."""

import flax.linen as nn

from crt_jax.layers.attention import Attention, Past
from crt_jax.layers.feed_forward import FeedForward
from crt_jax.layers.latent_attention import LatentAttention
from crt_jax.layers.norm import Norm
from crt_jax.types import Array


class TransformerLayer(nn.Module):
  """A pre-norm layer: x <- x + Attention(Norm1(x)); x <- x + FeedForward(Norm2(x))."""

  attention: Attention | LatentAttention
  feed_forward: FeedForward
  norm: str = 'layer'
  norm_eps: float = 1e-5

  @nn.compact
  def __call__(
    self, x_BxTxC: Array, past: Past | None = None, *given: tuple[Array, Array]
  ) -> tuple[Array, dict | None]:
    """Returns the new x_BxTxC and the attention's entries (None without `past`).

    Args:
      given: what the attention takes besides, such as keys and values of another stream.
    """
    width = x_BxTxC.shape[-1]
    norm1 = Norm(width, self.norm, self.norm_eps, name='norm1')
    norm2 = Norm(width, self.norm, self.norm_eps, name='norm2')
    mixed, entries = self.attention(norm1(x_BxTxC), past, *given)
    x_BxTxC = x_BxTxC + mixed.astype(x_BxTxC.dtype)
    return x_BxTxC + self.feed_forward(norm2(x_BxTxC)).astype(x_BxTxC.dtype), entries
