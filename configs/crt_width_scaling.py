r"""Does a CRT gain more over a transformer the wider both are (crt.md, 10.4)? T=64.

  python -m experiments.main --config=configs/crt_width_scaling.py:which=c256_d2 \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

  which                            batch x steps              published perplexity
  c256_n2   c256_d2    same width  1024 x 7 629   512 x 15 259   158.83   143.57
  c512_n2   c512_d2                512 x 27 466   256 x 54 932    95.48    84.69
  c1024_n2  c1024_d2               1024 x 18 750  256 x 74 890    72.83    60.84
  equal_c256_d2, equal_c512_d2, equal_c1024_d2   the same CRTs with the batch and steps of n2
  matched_c256_n2   matched_c280_d1  same FLOPs   1024 x 37 500  115.83   106.53
  matched_c512_n2   matched_c560_d1               1024 x 37 500   85.61    81.26
  matched_c1024_n2  matched_c1120_d1              1024 x 37 500   65.19    62.42

At equal tokens the published CRTs of the first rows took 2, 2 and 4 times as many optimiser steps,
which `equal_` takes away; nothing is published of those. One GPU of 80 GB; not run here yet.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

# which -> CRT's layers D, or N of a transformer; C; heads; batch; steps
CRTS = {
  'c256_d2': (2, 256, 4, 512, 15_259),
  'c512_d2': (2, 512, 8, 256, 54_932),
  'c1024_d2': (2, 1024, 16, 256, 74_890),
  'equal_c256_d2': (2, 256, 4, 1024, 7_629),
  'equal_c512_d2': (2, 512, 8, 512, 27_466),
  'equal_c1024_d2': (2, 1024, 16, 1024, 18_750),
  'matched_c280_d1': (1, 280, 4, 1024, 37_500),
  'matched_c560_d1': (1, 560, 8, 1024, 37_500),
  'matched_c1120_d1': (1, 1120, 16, 1024, 37_500),
}
TRANSFORMERS = {
  'c256_n2': (2, 256, 4, 1024, 7_629),
  'c512_n2': (2, 512, 8, 512, 27_466),
  'c1024_n2': (2, 1024, 16, 1024, 18_750),
  'matched_c256_n2': (2, 256, 4, 1024, 37_500),
  'matched_c512_n2': (2, 512, 8, 1024, 37_500),
  'matched_c1024_n2': (2, 1024, 16, 1024, 37_500),
}
NAMES = (*TRANSFORMERS, *CRTS)
ARGUMENTS = ('which=c256_d2', 'which=matched_c1120_d1')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, which='c256_d2')
  if given.which not in NAMES:
    raise ArgumentMistake(f'which={given.which!r} must be one of {", ".join(NAMES)}')
  is_crt = given.which in CRTS
  table = CRTS if is_crt else TRANSFORMERS
  layers, width, heads, batch, steps = table[given.which]
  sizes = dict(sequence_length=64, batch_size=batch, steps=steps)
  paper = base.crt_paper if is_crt else base.transformer_paper
  return paper(layers, width, heads, **sizes)
