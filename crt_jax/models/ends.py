"""What stands before and after a model's layers: embedding, final norm, output layer."""

import jax
import jax.numpy as jnp

from crt_jax import sharding
from crt_jax.layers.linear import Embedding, Linear, contract
from crt_jax.layers.norm import Norm
from crt_jax.layers.parameters import compute_dtype
from crt_jax.models import decode_kernel
from crt_jax.models.inputs import check_positions, check_tokens
from crt_jax.models.modules import apply_module
from crt_jax.schema import CARTConfig, LayerFields, ModelConfig
from crt_jax.types import AnyArray, Array, Params


def untied_ends(config: ModelConfig) -> dict:
  """Returns the ends of the CRT paper's models: LayerNorm, an output layer with biases."""
  output = Linear((config.vocab_size,), (config.width,), ('vocab', 'width'), dtype=config.dtype)
  return dict(
    embedding=Embedding(config.vocab_size, config.width),
    final_norm=Norm(config.width),
    output=output,
  )


def tied_ends(config: CARTConfig | LayerFields) -> dict:
  """Returns the ends of CART: RMSNorm, the embedding as the output matrix."""
  norm = Norm(config.width, 'rms', config.norm_eps)
  return dict(embedding=Embedding(config.vocab_size, config.width, 0.02), final_norm=norm)


def llama_ends(config: LayerFields) -> dict:
  """Returns the ends of Llama: RMSNorm, an output layer without biases unless tied."""
  if config.tied:
    return tied_ends(config)
  shape, axes = ((config.vocab_size,), (config.width,)), ('vocab', 'width')
  output = Linear(*shape, axes, bias=False, initializer='normal', dtype=config.dtype)
  return tied_ends(config) | dict(output=output)


def gpt2_ends(config: LayerFields) -> dict:
  """Returns the ends of GPT-2: learned positions, LayerNorm, tied output."""
  embedding = Embedding(config.vocab_size, config.width, 0.02, config.max_positions)
  return dict(embedding=embedding, final_norm=Norm(config.width))


def embed(
  modules: dict, params: Params, tokens_BxT: AnyArray, start_B: Array | None = None
) -> Array:
  """Returns e_BxTxC with its rows split over the mesh, so that devices exchange weights only.

  It begins the residual stream, so it is at least float32, even if the table is stored in fewer
  bits.

  Args:
    start_B: the first position of each row, or of all; None: the text begins here.
  """
  embedding = modules['embedding']
  check_tokens(tokens_BxT, embedding.vocab_size)
  if start_B is None:
    check_positions(tokens_BxT.shape[1], embedding.max_positions)
  tables = {
    name: sharding.gather_rows(a, split=name == 'weight') for name, a in params['embedding'].items()
  }
  e_BxTxC = apply_module(embedding, tables, tokens_BxT, start_B)
  return sharding.split_rows(e_BxTxC.astype(jnp.promote_types(e_BxTxC.dtype, jnp.float32)))


@jax.named_scope('output_layer')
def project(modules: dict, params: Params, hidden: Array, config: ModelConfig) -> Array:
  """Applies final norm and output layer: computes in the model's dtype, sums in float32 or more."""
  if decode_kernel.is_single_row(config.decode_kernel, hidden):
    from crt_jax.layers import single_row

    norm, norm_params = modules['final_norm'], params['final_norm']
    output = params['output' if 'output' in modules else 'embedding']
    is_slow = config.decode_kernel == 'interpreted'
    return single_row.head(norm, norm_params, output, hidden, config.dtype, is_slow)
  normed = apply_module(modules['final_norm'], params['final_norm'], hidden)
  out_dtype = jnp.promote_types(normed.dtype, jnp.float32)
  if 'output' in modules:
    return modules['output'].apply({'params': params['output']}, normed, out_dtype)
  table_VxC = params['embedding']['weight']
  dtype = compute_dtype(config.dtype, table_VxC.dtype)
  return contract(normed.astype(dtype), table_VxC.astype(dtype), 1, out_dtype)
