"""The models in float64 NumPy, from the papers' formulas alone (crt.md 2, 3, 4 and 9; cart.md 2).

Loops over layers, passes and positions, no cache, nothing shared with crt_jax. Arrays go by the
names of the published implementations, as `crt_jax.convert.reference.import_params` takes them.
Models are described by plain dicts, the `config.model` of the tests; `draw_crt` and `draw_cart`
give the arrays of such a model.
"""

import math

import numpy as np
from scipy.special import erf, expit

# ---- what both models are made of --------------------------------------------------------------


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def gelu(x):
  return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def rotate(x_BxHxTxA, kind, theta=1e4):
  """Rotary angles of positions 0..T-1 (crt.md 2.3)."""
  length, width = x_BxHxTxA.shape[-2:]
  position_Tx1, pair_1xA = np.arange(length)[:, None], np.arange(width // 2)[None]
  if kind == 'standard':
    angle = np.tile(position_Tx1 * theta ** (-2 * pair_1xA / width), 2)
    halves = np.split(x_BxHxTxA, 2, axis=-1)
    return x_BxHxTxA * np.cos(angle) + np.concatenate([-halves[1], halves[0]], -1) * np.sin(angle)
  angle = {'integer': 1, 'integer_reversed': -1}[kind] * position_Tx1 * pair_1xA
  turned = np.empty_like(x_BxHxTxA)
  even, odd = x_BxHxTxA[..., 0::2], x_BxHxTxA[..., 1::2]
  turned[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
  turned[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
  return turned


def attend(q_BxHxTxA, k_BxHxTxA, v_BxHxTxA, window=0):
  """Causal softmax attention, heads merged again: [B, T, H * A]."""
  batch, heads, length, head_width = q_BxHxTxA.shape
  i, j = np.arange(length)[:, None], np.arange(length)[None]
  seen_TxT = (j <= i) & ((i - j < window) if window else True)
  scores = q_BxHxTxA @ k_BxHxTxA.swapaxes(-1, -2) / math.sqrt(head_width)
  mixed = softmax(np.where(seen_TxT, scores, -np.inf)) @ v_BxHxTxA
  return mixed.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_width)


def split_heads(y_BxTxC, heads):
  batch, length, width = y_BxTxC.shape
  return y_BxTxC.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def cross_entropy(logits_BxTxV, targets_BxT):
  """Mean over targets of at least 0, in nats."""
  picked = np.take_along_axis(logits_BxTxV, np.maximum(targets_BxT, 0)[..., None], -1)[..., 0]
  return (np.log(np.exp(logits_BxTxV).sum(-1)) - picked)[targets_BxT >= 0].mean()


# ---- CRT ---------------------------------------------------------------------------------------


def linear(arrays, name, x):
  return x @ arrays[f'{name}.weight'].T + arrays[f'{name}.bias']


def layer_norm(arrays, name, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * arrays[f'{name}.weight'] + arrays[f'{name}.bias']


def feed_forward(arrays, name, x):
  return linear(arrays, f'{name}.ffn.2', gelu(linear(arrays, f'{name}.ffn.0', x)))


def attention(arrays, name, x_BxTxC, config):
  """With 'integer_reversed' the projection named keys acts as the query (crt.md 2.3)."""
  roles = ['queries', 'keys', 'values']
  if config['rotary'] == 'integer_reversed':
    roles = ['keys', 'queries', 'values']
  q, k, v = (
    split_heads(linear(arrays, f'{name}.{role}', x_BxTxC), config['heads']) for role in roles
  )
  q, k = rotate(q, config['rotary']), rotate(k, config['rotary'])
  return linear(arrays, f'{name}.proj', attend(q, k, v, config['window']))


def layer_names(config):
  return ['block'] if config['layers'] == 1 else [f'blocks.{i}' for i in range(config['layers'])]


def table_name(config):
  return 'token_embedding' if config['rotary'] == 'integer' else 'token_embedding_table'


def block(arrays, x_BxTxC, config):
  for name in layer_names(config):
    normed = layer_norm(arrays, f'{name}.ln1', x_BxTxC)
    x_BxTxC = x_BxTxC + attention(arrays, f'{name}.sa_head', normed, config)
    normed = layer_norm(arrays, f'{name}.ln2', x_BxTxC)
    x_BxTxC = x_BxTxC + feed_forward(arrays, f'{name}.ffn', normed)
  return x_BxTxC


def shift(z_BxTxC):
  """Position t gets what t-1 has, position 0 zeros."""
  return np.concatenate([np.zeros_like(z_BxTxC[:, :1]), z_BxTxC[:, :-1]], axis=1)


def correction(arrays, config, z, x, e, shifted=shift):
  """What the table of crt.md 9 adds to the embedding, from block output z and block input x."""
  variant, last = config['correction'], layer_names(config)[-1]

  def f(u):
    return feed_forward(arrays, 'corr_ffn', layer_norm(arrays, 'ln_corr', u))

  def f_last(norm, u):
    return feed_forward(arrays, f'{last}.ffn', layer_norm(arrays, norm, u))

  s, delta = shifted(z), shifted(z - x)
  match variant:
    case 'add' | 'px':
      return f(s + e)
    case 'stateless':
      return f(e)
    case 'token_blind':
      return shifted(f(z))
    case 'concat':
      return f(np.concatenate([s, e], axis=-1))
    case 'block_head':
      return delta
    case 'nosub':
      return s
    case 'delta_ffn':
      return shifted(f(z - x))
    case 'delta_ffn_add':
      return f(delta + e)
    case 'tied':
      return f_last('ln_corr', s + e)
    case 'pure':
      return s + f(s + e)
    case 'tied_pure':
      return s + f_last(f'{last}.ln2', s + e)
    case 'sa':
      u = s + e
      u = u + attention(arrays, 'corr_attn', layer_norm(arrays, 'ln_corr_attn', u), config)
      return feed_forward(arrays, 'corr_ffn', layer_norm(arrays, 'ln_corr_ffn', u))


def crt_passes(arrays, tokens_BxT, config, depth):
  """K parallel passes: the last block output, its input x^(K), and x^(K+1)."""
  e = arrays[f'{table_name(config)}.weight'][tokens_BxT]
  shifted = (lambda s: s) if config.get('self_inclusive') else shift
  x_next = e
  if config.get('start') == 'corrected':
    # All summaries are zero, whatever the variant makes them of.
    x_next = e + correction(arrays, config, 0 * e, 0 * e, e, lambda s: 0 * s)
  for _ in range(depth):
    x = x_next
    z = block(arrays, x, config)
    base = x if config.get('cumulative') else e
    x_next = base + correction(arrays, config, z, x, e, shifted)
  return z, x, x_next


def crt_head(arrays, z, x, config):
  return linear(
    arrays, 'head', layer_norm(arrays, 'ln_f', x if config['correction'] == 'px' else z)
  )


def crt(arrays, tokens_BxT, config, depth):
  """Logits after K parallel passes (crt.md 3)."""
  z, _, x_next = crt_passes(arrays, tokens_BxT, config, depth)
  return crt_head(arrays, z, x_next, config)


def crt_loss(arrays, tokens_BxT, targets_BxT, config, depth, frozen=None):
  """Cross-entropy plus the convergence term; `frozen` is the x^(K) behind its stop-gradient."""
  z, x, x_next = crt_passes(arrays, tokens_BxT, config, depth)
  gap = x_next - (x if frozen is None else frozen)
  logits = crt_head(arrays, z, x_next, config)
  weight = config.get('convergence_weight', 0.0)
  return cross_entropy(logits, targets_BxT) + weight * (gap**2).mean()


def crt_sequential(arrays, tokens_BxT, config):
  """Logits of the exact recurrence: at each position the whole prefix again (crt.md 4)."""
  e = arrays[f'{table_name(config)}.weight'][tokens_BxT]
  x = z = e[:, :0]
  for t in range(e.shape[1]):
    padded_z, padded_x = (np.concatenate([a, 0 * e[:, :1]], axis=1) for a in (z, x))
    corrected = e[:, : t + 1] + correction(arrays, config, padded_z, padded_x, e[:, : t + 1])
    x = np.concatenate([x, corrected[:, -1:]], axis=1)
    z = block(arrays, x, config)
  return crt_head(arrays, z, x, config)


def draw_crt(config, generator):
  """Arrays of a CRT, large enough that every part of it shows in the logits."""
  width = config['width']
  arrays = {f'{table_name(config)}.weight': generator.standard_normal((13, width))}

  def draw_linear(name, out_width, in_width):
    bound = 3 / math.sqrt(in_width)
    arrays[f'{name}.weight'] = generator.uniform(-bound, bound, (out_width, in_width))
    arrays[f'{name}.bias'] = generator.uniform(-0.5, 0.5, out_width)

  def draw_norm(name, in_width=width):
    arrays[f'{name}.weight'] = 1 + 0.3 * generator.standard_normal(in_width)
    arrays[f'{name}.bias'] = 0.3 * generator.standard_normal(in_width)

  def draw_attention(name):
    for part in ('keys', 'queries', 'values', 'proj'):
      draw_linear(f'{name}.{part}', width, width)

  def draw_feed_forward(name, in_width=width):
    draw_linear(f'{name}.ffn.0', 4 * width, in_width)
    draw_linear(f'{name}.ffn.2', width, 4 * width)

  for name in layer_names(config):
    draw_attention(f'{name}.sa_head')
    draw_feed_forward(f'{name}.ffn')
    draw_norm(f'{name}.ln1')
    draw_norm(f'{name}.ln2')
  draw_norm('ln_f')
  draw_linear('head', 13, width)
  variant = config['correction']
  reads = 2 * width if variant == 'concat' else width
  if variant == 'sa':
    draw_attention('corr_attn')
    draw_norm('ln_corr_attn')
    draw_norm('ln_corr_ffn')
  elif variant not in ('block_head', 'nosub', 'tied_pure'):
    draw_norm('ln_corr', reads)
  if variant not in ('block_head', 'nosub', 'tied', 'tied_pure'):
    draw_feed_forward('corr_ffn', reads)
  return arrays


# ---- CART --------------------------------------------------------------------------------------


def product(arrays, name, x):
  return x @ arrays[f'{name}.weight'].T


def rms_norm(arrays, name, x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * arrays[f'{name}.weight']


def keys_values(arrays, name, x, heads):
  if f'{name}.kv_down.weight' in arrays:
    x, parts = product(arrays, f'{name}.kv_down', x), ('k_up', 'v_up')
  else:
    parts = ('k_proj', 'v_proj')
  return [split_heads(product(arrays, f'{name}.{part}', x), heads) for part in parts]


def cart_layer(arrays, name, x, heads, given=None):
  """Pre-norm attention and SwiGLU; rotary angles only where the keys are its own (cart.md 2.3)."""
  normed = rms_norm(arrays, f'{name}.norm1', x)
  q = split_heads(product(arrays, f'{name}.attn.q_proj', normed), heads)
  if given is None:
    k, v = keys_values(arrays, f'{name}.attn', normed, heads)
    q, k = rotate(q, 'standard'), rotate(k, 'standard')
  else:
    k, v = given
  x = x + product(arrays, f'{name}.attn.o_proj', attend(q, k, v))
  normed = rms_norm(arrays, f'{name}.norm2', x)
  gate = product(arrays, f'{name}.ffn.gate', normed)
  up = product(arrays, f'{name}.ffn.up', normed)
  return x + product(arrays, f'{name}.ffn.down', gate * expit(gate) * up)


def cart(arrays, tokens_BxT, config):
  """Logits of prelude, R loops and coda (cart.md 2.4 to 2.7) with the switches of cart.md 4."""
  heads = config['width'] // config['head_width']
  is_cross = config.get('core', 'cross') == 'cross'
  x = arrays['embedding.weight'][tokens_BxT]
  for i in range(config['prelude_layers']):
    x = cart_layer(arrays, f'prelude.{i}', x, heads)

  def anchor(source):
    if config.get('anchor_norm'):
      source = rms_norm(arrays, 'kv_proj.norm', source)
    return keys_values(arrays, 'kv_proj', source, heads)

  given = anchor(x) if is_cross else None
  alpha = softmax(arrays['hyper.weights'])
  history = [x] * len(alpha)  # newest first
  for r in range(config['loops']):
    u = history[0]
    if config.get('blend', True):
      u = sum(a * h for a, h in zip(alpha, history, strict=True))
    if config.get('loop_code', True):
      u = u + arrays['lie.proj.weight'] @ loop_code(r, config.get('loop_code_width', 32))
    if config.get('anchor') == 'per_loop':
      given = anchor(u)
    core = 'core' if config.get('share_core', True) else f'core.{r}'
    h = cart_layer(arrays, core, u, heads, given)
    if config.get('core_residual', True):
      gain = expit(arrays['lti.a_param']) if config.get('gate', True) else 1
      h = h + gain * u
    history = [h, *history[:-1]]
  x = cart_layer(arrays, 'coda', history[0], heads)
  return rms_norm(arrays, 'final_norm', x) @ arrays['embedding.weight'].T


def loop_code(r, width):
  """Sines at even and cosines at odd places (cart.md 2.6)."""
  angle = r * 1e4 ** (-2 * np.arange(width // 2) / width)
  return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(width)


def draw_cart(config, generator):
  """Arrays of a CART, large enough that every part of it shows in the logits."""
  width, ratio = config['width'], config.get('latent_ratio', 4)
  hidden = 256 * math.ceil(8 * width / 3 / 256)
  own_keys = config.get('core', 'cross') == 'self'
  arrays = {
    'embedding.weight': generator.standard_normal((13, width)),
    'hyper.weights': generator.standard_normal(config.get('history', 3)),
    'lti.a_param': generator.standard_normal(width),
  }

  def draw(name, out_width, in_width):
    size = 2 / math.sqrt(in_width)
    arrays[f'{name}.weight'] = size * generator.standard_normal((out_width, in_width))

  def draw_norm(name):
    arrays[f'{name}.weight'] = 1 + 0.2 * generator.standard_normal(width)

  def draw_keys(name):
    if ratio:
      draw(f'{name}.kv_down', width // ratio, width)
    for part in 'kv':
      draw(f'{name}.{part}_{"up" if ratio else "proj"}', width, width // ratio if ratio else width)

  def draw_layer(name, has_keys=True):
    for part in ('q_proj', 'o_proj'):
      draw(f'{name}.attn.{part}', width, width)
    if has_keys:
      draw_keys(f'{name}.attn')
    draw(f'{name}.ffn.gate', hidden, width)
    draw(f'{name}.ffn.up', hidden, width)
    draw(f'{name}.ffn.down', width, hidden)
    draw_norm(f'{name}.norm1')
    draw_norm(f'{name}.norm2')

  for i in range(config['prelude_layers']):
    draw_layer(f'prelude.{i}')
  shared = config.get('share_core', True)
  for name in ['core'] if shared else [f'core.{r}' for r in range(config['loops'])]:
    draw_layer(name, own_keys)
  draw_layer('coda')
  if not own_keys:
    draw_keys('kv_proj')
  if config.get('anchor_norm'):
    draw_norm('kv_proj.norm')
  draw('lie.proj', width, config.get('loop_code_width', 32))
  draw_norm('final_norm')
  return arrays
