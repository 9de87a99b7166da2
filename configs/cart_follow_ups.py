"""What the published comparison of CART leaves open: one switch at a time (cart.md, 4 and 9).

  python -m experiments.main --config=configs/cart_follow_ups.py:which=full_rank
  python -m experiments.main --config=configs/cart_follow_ups.py:which=full_rank,data=published

d=1024, P=6, R=6, seed 42 and the recipe of configs/cart_d1024.py. Nothing is published of these;
beside them stand the published tiny / wiki / edu of CART (2.798 / 20.45 / 20.76), of its unshared
core W (2.699 / 19.27 / 19.68) and of the dense 12 layers (2.592 / 18.32 / 18.50).

  which                    question
  full_rank                do compressed keys and values cost CART something? Full rank everywhere
  no_core_residual         does it need the second copy of its state, h = u + core(u)? Here h =
                           core(u), which leaves the gate nothing to do
  anchor_norm              does the anchor read a stream that nobody normalised at a loss?
  gate_without_decay       is the gate where it is because of weight decay (cart.md, 9.3)?
  shared_self              is it the anchor that a shared core needs, or just attention?
  unshared_self_full_rank  W keeps 4 to 6 % behind 12 dense layers: because of its compressed keys?
  unshared_self_plain      or because of blend, gate, loop code and doubled residual? W without
  dense_latent             dense, 13 layers, with CART's compressed keys: 182.7 M, W has 182.8 M

One GPU of 24 GB, about 9 h of an RTX 3090 each by the published rates. Not measured here. The
texts: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs.cart_base import cart_model, chosen, dense_model, variant

UNSHARED_SELF = dict(share_core=False, core='self')
PLAIN = dict(core_residual=False, blend=False, gate=False, loop_code=False)
VARIANTS = {
  'full_rank': cart_model(latent_ratio=0),
  'no_core_residual': cart_model(core_residual=False, gate=False),
  'anchor_norm': cart_model(anchor_norm=True),
  'gate_without_decay': cart_model(),
  'shared_self': cart_model(core='self'),
  'unshared_self_full_rank': cart_model(**UNSHARED_SELF, latent_ratio=0),
  'unshared_self_plain': cart_model(**UNSHARED_SELF, **PLAIN),
  'dense_latent': dense_model(13, latent_ratio=4),
}
ARGUMENTS = tuple(f'which={name}' for name in VARIANTS)


def get_config(arguments: str = '') -> ConfigDict:
  given = chosen(VARIANTS, arguments)
  config = variant(VARIANTS[given.which], given, 'cart_follow_ups')
  if given.which == 'gate_without_decay':
    config.optimizer.decay_mask = 'all_but_gate'
  return config
