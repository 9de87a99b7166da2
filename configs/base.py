"""The sections that every config has, and the CRT paper's recipe (spec: crt.md, sections 7 and 8).
Not an experiment itself.

A config is complete: every field that the code reads is here, so a misspelt one is refused, and a
variant is a small function of these.
"""

from typing import Any, NamedTuple

import ml_collections
from ml_collections import ConfigDict


class Run(NamedTuple):
  """One run of a sweep (configs/sweeps)."""

  name: str  # of its folder
  config: str  # what to give as --config
  changes: dict[str, Any] = {}  # dotted fields that differ from that file


def crt_model(**changes) -> dict:
  """Returns all fields of a CRT (crt_jax/models/crt.py says what each does); vocab_size follows the
  data."""
  model = dict(
    name='crt',
    layers=1,  # D, layers of the block
    width=256,  # C; divisible by heads, and C / heads even
    heads=16,  # H
    depth=5,  # K, parallel passes
    depth_min=2,  # training draws K from depth_min .. depth; 0 = always depth
    depth_schedule='',  # 'step:K' or 'step:low-high', comma-separated
    correction='add',  # the paper's CRT; see crt_jax/models/corrections.py
    cumulative=False,
    self_inclusive=False,
    start='embedding',  # first input of the passes; 'corrected' injects a zero state
    convergence_weight=0.1,  # of mean((x^(K+1) - x^(K))^2) in the loss
    driver='unroll',  # 'chunked' (with chunk), 'sequential' = backpropagation through time
    chunk=0,
    backward='replay',  # of those two drivers: stores the caches; 'segments', 'scan' (everything)
    gradient='full',  # or 'truncated', 'last_passes', 'implicit', which leave part of it out
    gradient_reach=0,  # their positions, passes or reverse passes
    rotary='integer_reversed',  # of the published language models
    rotary_theta=1e4,  # of rotary='standard' only
    dropout=0.2,
    dtype='float32',  # compute; parameters and residual stream stay float32
    # How it is computed; crt_jax/models/platform.py settles 'auto' and 0 for the device.
    remat='auto',  # 'none', 'layer' recomputes every layer in every pass, 'pass' every pass; 'dots'
    unroll_scans='auto',  # 'yes' writes layers and passes out: faster on a GPU, compiles longer
    attention_kernel='auto',  # 'xla' (runs with dropout too), 'cudnn' (NVIDIA), 'splash' (TPU)
    loss_chunk_mib=0,  # MiB of float32 logits that a device holds at a time
    window=0,  # positions that attention sees; 0 = all before it
  )
  return _changed(model, changes)


def transformer_model(**changes) -> dict:
  """Returns all fields of the CRT paper's baseline; vocab_size follows the data."""
  model = dict(
    name='transformer',
    layers=6,  # N
    width=256,  # C; divisible by heads, and C / heads even
    heads=16,  # H
    style='roformer',  # the paper's baseline; 'roformer_head_ffn', 'cart_dense'
    rotary='integer_reversed',
    rotary_theta=1e4,  # of rotary='standard' and style='cart_dense' only
    norm_eps=1e-6,  # of style='cart_dense' only
    latent_ratio=0,  # of style='cart_dense' only: 4 as in a CART; 0 = full rank
    dropout=0.2,
    dtype='float32',
    remat='auto',
    unroll_scans='auto',
    attention_kernel='auto',
    loss_chunk_mib=0,
    window=0,
  )
  return _changed(model, changes)


def cart_model(**changes) -> dict:
  """Returns all fields of a CART (crt_jax/models/cart.py says what each does); vocab_size follows
  the data."""
  model = dict(
    name='cart',
    width=256,  # C; a multiple of head_width
    prelude_layers=6,  # P; below 2 with short_prelude
    short_prelude=False,  # P = 0 or 1, which was not published
    loops=6,  # R
    loops_min=0,  # training draws R from loops_min .. loops; 0 = always loops
    backprop_loops=0,  # gradients flow through the last so many loops; 0 = all
    head_width=64,
    latent_ratio=4,  # keys and values through C / 4; 0 = full rank
    history=3,  # states that the blend mixes
    gate_init=0.9,  # of sigmoid(a), in (0, 1)
    loop_code_width=32,
    norm_eps=1e-6,
    rotary_theta=1e4,
    anchor='frozen',  # 'per_loop'
    anchor_norm=False,
    share_core=True,
    core='cross',  # 'self'
    core_residual=True,  # False needs gate=False
    blend=True,
    gate=True,
    loop_code=True,
    dropout=0.0,
    dtype='float32',  # compute; parameters and residual stream stay float32
    remat='auto',
    unroll_scans='auto',
    attention_kernel='auto',
    loss_chunk_mib=0,
    window=0,
  )
  return _changed(model, changes)


def _changed(fields: dict, changes: dict) -> dict:
  unknown = changes.keys() - fields.keys()
  if unknown:
    raise ValueError(f'no such field: {", ".join(sorted(unknown))}')
  return fields | changes


def base(model: dict) -> ConfigDict:
  """Returns a complete config around a model: the embedded novel as bytes, the paper's optimiser,
  one device or many.

  Sizes of data and training are small; an experiment sets its own.
  """
  config = ConfigDict()
  config.seed = 42  # of parameters, data order, dropout and drawn depths

  config.data = ConfigDict(
    dict(
      corpus='moby_dick',  # 'moby_dick' | 'sotu' | 'files' | 'tfds:NAME' | 'mixture'
      files='',  # glob of .txt and .jsonl, plain or .gz; for corpus='files'
      validation_files='',  # glob of the validation split; '' = it is split off from `files`
      text_field='text',  # of .jsonl lines and TFDS features
      tfds_dir='',  # where prepared TFDS sets lie; '' = TFDS's default
      tokenizer='bytes',  # 'bytes' | 'bpe' | 'gpt2' | 'gpt2:DIR' | path of a tokenizer.json
      vocab_size=256,  # of a trained BPE; 256 for bytes
      bpe_recipe='default',  # 'crt' = the paper's: NFKC, byte level, <pad> and <unk>
      bpe_documents=0,  # the BPE is trained on the first N documents; 0 = all
      separator='none',  # between documents: 'none' | 'eos' | 'bos_eos'
      split='auto',  # 'document_hash' where there are many documents, else 'contiguous'
      validation_fraction=0.1,
      sequence_length=256,  # T, tokens
      batch_size=16,  # B, rows of the global batch; divisible by mesh.data * mesh.fsdp
      sampling='shuffled',  # 'shuffled' | 'random_offsets' | 'in_order'
      sources=ConfigDict(),  # of corpus='mixture': name -> source(...)
      interleave='',  # the pattern that a mixture repeats, 'name:chunks, name:chunks, ...'
      chunk_tokens=1024,  # of a mixture
      cache_dir='',  # of tokenised text; '' = $CRT_JAX_CACHE or ~/.cache/crt_jax
    )
  )
  config.model = ConfigDict({**model, 'vocab_size': config.data.get_ref('vocab_size')})
  config.optimizer = ConfigDict(
    dict(
      name='adamw',  # 'adamw' | 'adam'
      learning_rate=2e-4,
      schedule='constant',  # 'constant' | 'cosine', to final_learning_rate at the last step
      warmup_steps=0,  # linear; the full rate is reached at this step
      final_learning_rate=0.0,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.01,  # decoupled, multiplied by the learning rate
      decay_mask='all',  # 'all_but_gate' of a CART, 'matrices' (no biases, norms, gate, blend)
      frozen=(),  # parts of the model that stay as initialised, as ('gate',)
      clip_norm=1.0,  # of the global gradient; 0 = off
    )
  )
  config.train = ConfigDict(
    dict(
      steps=1000,  # updates
      init_from='',  # work directory of a trained model to begin with (a transformer for a CRT)
      accumulation=1,  # slices of the batch per update; divides batch_size
      log_every=10,  # steps
      eval_every=200,  # steps between measurements on the validation set
      checkpoint_every=200,  # steps
      keep_checkpoints=2,  # the newest; the best one stays too
      telemetry_every=0,  # steps between expensive statistics; 0 = never
    )
  )
  config.eval = ConfigDict(
    dict(
      sample='random',  # windows that are scored: 'random' (CRT's paper) | 'first' (CART's)
      batches=20,  # of sample='random', the same every time
      seed=42,  # of sample='random'
      windows=50,  # of sample='first'
      whole=True,  # at the end, also score every token of the validation sets once
      # but no more of each set in each form; 0 = 2^20, or what makes all forms of a set together a
      # tenth of the tokens trained on
      whole_tokens=0,
      depths=(),  # parallel K at the end; () = the configured one
      sequential=model['name'] == 'crt',  # at the end, also the exact recurrence
      during_training_batches=20,  # of sample='random', in training
      dtype='',  # scored in; '' = model.dtype
      jacobian_iterations=0,  # power iterations for the recurrence's Jacobian; 0 = not measured
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=-1,  # replicas of the parameters; -1 = all devices that are left
      fsdp=1,  # parameters, moments and rows are split
      tensor=1,  # heads, hidden units and the vocabulary are split
      gather='step',  # weights that lie on fsdp: all once a step | 'layer': where they are used
    )
  )
  config.sample = ConfigDict(
    dict(prompt='The ', num_tokens=200, temperature=0.8, top_k=50, top_p=0.95, seed=0)
  )
  return config


def source(**changes) -> ConfigDict:
  """Returns one corpus of a mixture."""
  fields = dict(
    corpus='files',  # as of config.data, except 'mixture'
    files='',
    validation_files='',
    text_field='text',
    max_tokens=0,  # of its training split that the mixture uses; 0 = all
  )
  return ConfigDict(_changed(fields, changes))


def paper(model: dict, sequence_length: int = 256, batch_size: int = 64, steps: int = 100_000):
  """Returns the CRT paper's recipe on OpenWebText around a model (crt.md, section 8).

  The text is not in the package: point data.files to it, for instance
    --config.data.files='/data/openwebtext/*.jsonl.gz'
  It is tokenised by a BPE of 32 000 tokens trained on its first 100 000 documents, joined without
  separators and cut 90/10.
  """
  config = base(model)
  config.data.update(
    corpus='files',
    tokenizer='bpe',
    vocab_size=32_000,
    bpe_recipe='crt',
    bpe_documents=100_000,
    split='contiguous',
    sampling='random_offsets',
    sequence_length=sequence_length,
    batch_size=batch_size,
  )
  config.model.dtype = 'bfloat16'
  config.model.remat = 'layer'  # memory that hardly grows with K
  config.train.update(steps=steps, log_every=100, eval_every=5000, checkpoint_every=5000)
  config.eval.whole = False  # 0.9 G tokens; the paper reports the sampled protocol
  return config


def crt_paper(
  layers: int, width: int, heads: int = 16, depth: int = 5, depth_min: int = 2, **sizes
):
  """Returns the paper's recipe for a CRT, evaluated at K in {1, 2, 3, 5, K, 2K} and
  sequentially."""
  model = crt_model(layers=layers, width=width, heads=heads, depth=depth, depth_min=depth_min)
  config = paper(model, **sizes)
  config.eval.update(depths=evaluation_depths(depth), jacobian_iterations=40)
  return config


def transformer_paper(
  layers: int, width: int, heads: int = 16, **sizes
) -> ml_collections.ConfigDict:
  """Returns the paper's recipe for a transformer."""
  return paper(transformer_model(layers=layers, width=width, heads=heads), **sizes)


def evaluation_depths(depth: int) -> tuple[int, ...]:
  """Returns the numbers of parallel passes that the paper reports for a model trained with K =
  depth."""
  return tuple(sorted({1, 2, 3, 5, depth, 2 * depth}))


def study(config, variants: dict, figure: str, seeds: tuple[int, ...] = (42, 137, 271)):
  """Adds what experiments.study reads: the variants, as changes of the config, and their seeds.

  Args:
    variants: name -> nested dict of the fields that differ.
    figure: which figure of experiments/study/figures.py shows the result.
  """
  config.study = ConfigDict(dict(seeds=seeds, figure=figure))
  config.study.variants = ConfigDict({name.replace('.', '_'): v for name, v in variants.items()})
  return config
