"""Every row of the papers' tables, to the printed digit (crt.md 2.7, 7, 9; cart.md 3.2, 3.4)."""

import dataclasses

import jax
import ml_collections
import pytest

import crt_jax
from crt_jax import accounting
from crt_jax.models.cart import CARTConfig
from crt_jax.models.corrections import VARIANTS
from crt_jax.models.crt import CRTConfig
from crt_jax.models.transformer import TransformerConfig


def roformer(layers, width, style='roformer'):
  return dict(name='transformer', style=style, layers=layers, width=width, vocab_size=32_000)


def crt(layers, width, correction='add', **fields):
  fields = dict(layers=layers, width=width, correction=correction, vocab_size=32_000) | fields
  return dict(name='crt') | fields


def cart(width, loops=6, preludes=6, **fields):
  fields = dict(width=width, loops=loops, prelude_layers=preludes, vocab_size=32_000) | fields
  return dict(name='cart') | fields


def dense(width, layers):
  return roformer(layers, width, style='cart_dense')


# N or D, layers, width, head width, body M, body + V*C M, parameters M
SECTION_7 = {
  84_934_656: """
    N 2 1888 118 85.5 146.0 206.5
    N 4 1344 84 86.7 129.7 172.8
    N 6 1088 68 85.2 120.0 155.0
    N 12 768 48 84.9 109.5 134.2
    D 1 2048 128 83.9 149.4 215.0
    D 3 1408 88 87.2 132.3 177.4
    D 5 1120 70 85.3 121.1 157.1
    D 6 1024 64 83.9 116.7 149.5
    D 11 768 48 82.6 107.2 131.9""",
  339_738_624: """
    N 2 3776 236 342.2 463.0 584.0
    N 4 2656 166 338.6 423.6 508.8
    N 6 2176 136 340.9 410.6 480.4
    N 12 1536 96 339.7 388.9 438.3
    N 24 1088 68 340.9 375.7 410.9
    D 1 4128 258 340.8 472.9 605.1
    D 3 2784 174 341.0 430.1 519.4
    D 5 2240 140 341.2 412.9 484.8
    D 6 2048 128 335.5 401.1 466.8
    D 11 1568 98 344.2 394.4 444.8""",
}
ROWS = [(b, *row.split()) for b, rows in SECTION_7.items() for row in rows.split('\n') if row]


@pytest.mark.parametrize('budget,kind,layers,width,head,body,total,count', ROWS)
def test_section_7(budget, kind, layers, width, head, body, total, count):
  layers, width = int(layers), int(width)
  model = roformer(layers, width) if kind == 'N' else crt(layers, width)
  assert f'{accounting.crt_paper(model) / 1e6:.1f}' == body
  assert f'{accounting.crt_paper(model, output_layer=True) / 1e6:.1f}' == total
  assert f'{accounting.parameters(model).stored / 1e6:.1f}' == count
  assert width // 16 == int(head)


@pytest.mark.parametrize('budget,kind,layers,width,head,body,total,count', ROWS)
def test_match_width(budget, kind, layers, width, head, body, total, count):
  """The budget of each table is the body of its N=12 row: that alone gives all widths but one."""
  layers, width = int(layers), int(width)
  correction = None if kind == 'N' else 'add'
  nearest = 1376 if (kind, layers, width) == ('D', 3, 1408) else width
  assert accounting.match_width(budget, layers, heads=16, correction=correction) == nearest
  assert (
    accounting.match_width(float(total) * 1e6, layers, 16, correction, output_layer=True) == width
  )


def test_match_width_counts_the_output_layer():
  # D=5 at the N=12 model's 109.5 M with V*C needs a narrower model than at its 84.9 M without.
  total = accounting.crt_paper(roformer(12, 768), output_layer=True)
  width = accounting.match_width(total, 5, correction='add', output_layer=True)
  assert width == 1056
  costs = [accounting.crt_paper(crt(5, c), True) for c in (width - 32, width, width + 32)]
  assert abs(costs[1] - total) < min(abs(costs[0] - total), abs(costs[2] - total))
  assert accounting.match_width(84_934_656, 12, heads=20) % 40 == 0
  with pytest.raises(ValueError, match='budget=0'):
    accounting.match_width(0, 1)


@pytest.mark.parametrize(
  'model,count',
  [
    (crt(1, 2048), 215_035_136),
    (crt(5, 1120), 157_094_080),
    (crt(6, 1024), 149_543_168),
    (roformer(6, 1088), 154_980_608),
    (roformer(12, 768), 134_240_000),
  ],
)
def test_section_2_7(model, count):
  assert accounting.parameters(model).stored == count


@pytest.mark.parametrize(
  'correction,squares,stored_squares,vectors',
  [
    ('add', 8, 8, 7),
    ('stateless', 8, 8, 7),
    ('token_blind', 8, 8, 7),
    ('concat', 12, 12, 9),
    ('block_head', 0, 0, 0),
    ('nosub', 0, 0, 0),
    ('delta_ffn', 8, 8, 7),
    ('delta_ffn_add', 8, 8, 7),
    ('tied', 8, 0, 2),
    ('pure', 8, 8, 7),
    ('tied_pure', 8, 0, 0),
    ('px', 8, 8, 7),
    ('sa', 12, 12, 13),
  ],
)
def test_section_9(correction, squares, stored_squares, vectors):
  model = crt(3, 64, correction)
  assert accounting.crt_paper(model) == (12 * 3 + squares) * 64**2
  layers_and_ends = 2 * 32_000 * 64 + 32_000 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64
  expected = layers_and_ends + stored_squares * 64**2 + vectors * 64
  assert accounting.parameters(model).stored == expected


def test_head_ffn_control_costs_what_the_correction_costs():
  control, model = roformer(3, 64, 'roformer_head_ffn'), crt(3, 64)
  assert accounting.parameters(control) == accounting.parameters(model)
  assert accounting.crt_paper(control, True) == accounting.crt_paper(model, True)


CART_STORED = """
  256 11282947 12053507 12824067 14365187 15906307
  512 28726275 31807491 34888707 41051139 47213571
  768 49970691 56312835 62654979 75339267 88023555
  1024 78948355 90484739 102021123 125093891 148166659"""
CART_EFFECTIVE = """
  256 14365187 1.000 15086595 1.050 16529411 1.151 17972227 1.251 19415043 1.352 20857859 1.452
  512 41051139 1.000 43935747 1.070 49704963 1.211 55474179 1.351 61243395 1.492 67012611 1.632
  768 75339267 1.000 81239043 1.078 93038595 1.235 104838147 1.392 116637699 1.548 128437251 1.705
  1024 125093891 1.000 135843843 1.086 157343747 1.258 178843651 1.430 200343555 1.602 221843459 1.773
"""  # noqa: E501
CART_WITHOUT_EMBEDDING = {256: 6_173_187, 512: 24_667_139, 768: 50_763_267, 1024: 92_325_891}
DENSE_AND_PIECES = """
  256 721408 49152 14159616 18422016 22684416
  512 2884608 196608 40246784 57291264 74335744
  768 5899776 442368 74132736 109529856 144926976
  1024 10749952 786432 122698752 186934272 251169792"""


def numbers(table):
  return [[float(x) if '.' in x else int(x) for x in row.split()] for row in table.split('\n')[1:]]


def test_cart_3_2():
  for width, *counts in numbers(CART_STORED):
    for preludes, count in zip((2, 3, 4, 6, 8), counts, strict=True):
      for loops in (1, 6):
        assert accounting.parameters(cart(width, loops, preludes)).stored == count
  for width, *row in filter(None, numbers(CART_EFFECTIVE)):
    for loops, count, leverage in zip((1, 2, 4, 6, 8, 10), row[::2], row[1::2], strict=True):
      found = accounting.parameters(cart(width, loops))
      assert found.effective == count and round(found.leverage, 3) == leverage
  for width, core, anchor, *counts in numbers(DENSE_AND_PIECES):
    pieces = accounting.parts(cart(width))
    assert pieces['core'].matrices + pieces['core'].vectors == core
    assert pieces['anchor'].matrices + pieces['anchor'].vectors == anchor
    for layers, count in zip((7, 12, 17), counts, strict=True):
      assert accounting.parameters(dense(width, layers)).stored == count
      assert accounting.parameters(dense(width, layers)).leverage == 1
  for width, count in CART_WITHOUT_EMBEDDING.items():
    found = accounting.parameters(cart(width))
    assert found.stored - found.embedding == count


@pytest.mark.parametrize(
  'switches,stored,effective',
  [
    (dict(blend=False), 125_093_891, 178_843_651),
    (dict(gate=False), 125_093_891, 178_843_651),
    (dict(loop_code=False), 125_093_891, 178_843_651),
    (dict(anchor='per_loop'), 125_093_891, 182_775_811),
    (dict(loops=1), 125_093_891, 125_093_891),
    (dict(share_core=False), 178_843_651, 178_843_651),
    (dict(share_core=False, core='self'), 182_775_811, 182_775_811),
    (dict(core='self'), 125_093_891, 182_775_811),
    (dict(share_core=False, anchor='per_loop'), 178_843_651, 182_775_811),  # section 13
  ],
)
def test_cart_ablations(switches, stored, effective):
  found = accounting.parameters(cart(1024) | switches)
  assert (found.stored, found.effective) == (stored, effective)


# GFLOPs per sequence of 1024, dense-layer equivalents, stored M, effective M (matrices only)
CART_3_4 = [
  (dense(1024, 7), '214.21', '7', '122.68', '122.68'),
  (dense(1024, 12), '367.22', '12', '186.9', None),
  (dense(1024, 17), '520.23', '17', '251.13', None),
  (cart(1024, 1, 6), '223.34', '7.3', '125.04', '125.04'),
  (cart(1024, 6, 4), '299.04', '9.8', '101.97', '155.71'),
  (cart(1024, 6, 6), '354.87', '11.6', '125.04', '178.78'),
  (cart(1024, 6, 8), '410.71', '13.4', '148.11', '201.85'),
  (cart(1024, 8, 4), '351.65', '11.5', '101.97', '177.21'),
  (cart(1024, 8, 6), '407.49', '13.3', '125.04', '200.28'),
  (cart(1024, 8, 8), '463.32', '15.1', '148.11', '223.35'),
  (cart(1024, 10, 4), '404.26', '13.2', '101.97', '198.71'),
  (cart(1024, 10, 6), '460.10', '15.0', '125.04', '221.77'),
  (cart(1024, 10, 8), '515.93', '16.9', '148.11', '244.84'),
  *[
    (cart(width, loops), gigaflops, None, None, None)
    for width, row in ((256, '21.21/33.96/39.06/44.16'), (512, '67.65/107.91/124.02/140.12'))
    for loops, gigaflops in zip((1, 6, 8, 10), row.split('/'), strict=True)
  ],
  *[
    (cart(768, loops), gigaflops, None, None, None)
    for loops, gigaflops in zip(
      (1, 6, 8, 10), ('129.65', '206.16', '236.76', '267.36'), strict=True
    )
  ],
  *[
    (dense(width, layers), gigaflops, None, None, None)
    for width, row in ((256, '19.73/33.82'), (512, '63.89/109.52'), (768, '124.02/212.6'))
    for layers, gigaflops in zip((7, 12), row.split('/'), strict=True)
  ],
]


def same_digits(value, printed):
  digits = len(printed.partition('.')[2])
  return f'{value:.{digits}f}' == printed


@pytest.mark.parametrize('model,gigaflops,layers,stored,effective', CART_3_4)
def test_cart_3_4(model, gigaflops, layers, stored, effective):
  flops = accounting.cart_paper(model, 1024)
  assert same_digits(flops / 1e9, gigaflops)
  if layers:
    assert same_digits(7 * flops / accounting.cart_paper(dense(1024, 7), 1024), layers)
  if stored:
    assert same_digits(accounting.parameters(model).matrices / 1e6, stored)
  if effective:
    assert same_digits(accounting.parameters(model).effective_matrices / 1e6, effective)


@pytest.mark.parametrize('width,printed', [(256, 16.8), (512, 33.6), (768, 50.3), (1024, 67.1)])
def test_cart_3_4_output_layer(width, printed):
  forward = [
    accounting.model_flops(dense(width, 1) | dict(vocab_size=vocab), 1024, training=False)
    for vocab in (32_000, 64_000)
  ]
  assert round((forward[1] - forward[0]) * 1024 / 1e9, 1) == printed


def test_cart_flops_of_the_switches():
  """Section 13: projections of a per-loop anchor count R times, a self-attention core 5.5 T d^2."""
  base = accounting.cart_paper(cart(1024), 1024)
  unit = 1024 * 1024**2
  assert accounting.cart_paper(cart(1024, anchor='per_loop'), 1024) == base + 5 * 1.5 * unit
  assert accounting.cart_paper(cart(1024, core='self'), 1024) == base + 6 * 1.5 * unit - 1.5 * unit
  assert accounting.cart_paper(cart(1024, share_core=False), 1024) == base
  # Full-rank keys and values: 2 C^2 instead of 0.75 C^2 in 6 prelude layers, coda and anchor.
  full = accounting.cart_paper(cart(1024, latent_ratio=0), 1024)
  assert full == base + 8 * 2 * (2 - 0.75) * unit


def test_model_flops_of_a_transformer():
  """2 (12 N C^2 + V C) + 2 T C N forward; the window leaves W - W^2 / 2T positions."""
  model = roformer(6, 1088)
  weights = 2 * (85_229_568 + 32_000 * 1088)
  forward = accounting.model_flops(model, 256, training=False)
  assert forward == weights + 2 * 256 * 1088 * 6
  assert accounting.model_flops(model, 256) == 3 * forward
  windowed = accounting.model_flops(model | dict(window=64), 256, training=False)
  assert windowed == weights + 4 * (64 - 64**2 / 512) * 1088 * 6
  assert accounting.model_flops(model | dict(window=999), 256, training=False) == forward
  with pytest.raises(ValueError, match='transformer takes only None'):
    accounting.model_flops(model, 256, depth=1)


@pytest.mark.parametrize(
  'fields,passes,corrections,training_corrections',
  [
    (dict(), 5, 4, 4),
    (dict(convergence_weight=0.1), 5, 4, 5),
    (dict(depth=1), 1, 0, 0),
    (dict(correction='px', convergence_weight=0.1), 5, 5, 5),
    (dict(start='corrected'), 5, 5, 5),
    (dict(driver='sequential'), 1, 1, 1),
  ],
)
def test_model_flops_of_a_crt(fields, passes, corrections, training_corrections):
  """K block passes; K - 1 corrections reach the logits, K with the convergence loss."""
  model = crt(5, 1120, **fields)
  block, correction, output = 2 * 60 * 1120**2 + 2 * 256 * 1120 * 5, 16 * 1120**2, 2 * 32_000 * 1120
  forward = accounting.model_flops(model, 256, training=False)
  assert forward == passes * block + corrections * correction + output
  training = accounting.model_flops(model, 256)
  assert training == 3 * (passes * block + training_corrections * correction + output)
  exact = accounting.model_flops(model, 256, training=False, sequential=True)
  assert exact == block + correction + output
  if passes == 5:
    drawn = accounting.model_flops(model, 256, depth=2, training=False)
    assert drawn == forward - 3 * (block + correction)


def test_attention_of_the_sa_correction_counts():
  with_attention = accounting.model_flops(crt(5, 1120, 'sa'), 256, training=False)
  without = accounting.model_flops(crt(5, 1120, 'concat'), 256, training=False)
  assert with_attention - without == 4 * 2 * 256 * 1120


def test_model_flops_of_cart():
  """R loops of the core, causal half, tied output layer once; depth is R."""
  square_attention = 4 * 1024 * 1024 * (6 + 6 + 1)
  expected = accounting.cart_paper(cart(1024), 1024) / 1024 - square_attention / 2
  expected += 2 * 32_000 * 1024
  assert accounting.model_flops(cart(1024), 1024, training=False) == expected
  assert accounting.model_flops(cart(1024, loops=4), 1024, depth=6, training=False) == expected


@pytest.mark.parametrize('loops', [1, 2, 6])
def test_loops_without_a_backward_pass_cost_their_forward_pass_alone(loops):
  def flops(**fields):
    return accounting.model_flops(cart(1024, loops=loops, **fields), 1024)

  core = 2 * (2 * 1024**2 + 3 * 1024 * 2816) + 2 * 1024 * 1024  # one loop, forward
  assert flops() - flops(backprop_loops=2) == 2 * max(loops - 2, 0) * core
  forward = [
    accounting.model_flops(cart(1024, backprop_loops=k), 1024, training=False) for k in (0, 2)
  ]
  assert forward[0] == forward[1]


def test_a_dense_layer_with_a_latent_counts_as_one_of_the_prelude():
  layers = [accounting.parts(dense(1024, 13) | dict(latent_ratio=4))['layers']]
  layers.append(accounting.parts(cart(1024, preludes=13))['prelude'])
  assert layers[0] == layers[1]
  assert accounting.parameters(dense(1024, 13) | dict(latent_ratio=4)).stored == 182_742_016


def test_fields_are_read_from_mapping_config_dict_or_object():
  model = ml_collections.ConfigDict(crt(5, 1120)).lock()
  assert accounting.parameters(model).stored == 157_094_080
  with pytest.raises(ValueError, match='model.width is missing'):
    accounting.parameters(dict(name='crt', vocab_size=8, layers=1))
  with pytest.raises(ValueError, match="model.correction='addd'"):
    accounting.parameters(crt(1, 32, 'addd'))
  with pytest.raises(ValueError, match="model.name='rnn'"):
    accounting.parameters(roformer(1, 32) | dict(name='rnn'))


@pytest.mark.parametrize(
  'kind,teraflops',
  [
    ('NVIDIA H100 80GB HBM3', 989.4),
    ('NVIDIA H100 PCIe', 756.5),
    ('NVIDIA H200', 989.4),
    ('NVIDIA A100-SXM4-80GB', 312.0),
    ('TPU v4', 275.0),
    ('TPU v5 lite', 197.0),
    ('TPU v5p', 459.0),
    ('TPU v6 lite', 918.0),
    ('cpu', 0.0),
    ('TPU v99', 0.0),
  ],
)
def test_peak_flops(kind, teraflops):
  assert accounting.peak_flops(kind) == teraflops * 1e12


SMALL = dict(vocab_size=11, width=64, layers=2)
CART_SWITCHES = [
  dict(),
  dict(latent_ratio=0, prelude_layers=2),
  dict(anchor='per_loop', anchor_norm=True),
  dict(core='self'),
  dict(core='self', share_core=False, loops=3),
  dict(share_core=False, loops=3, history=2, loop_code_width=8),
  dict(blend=False, gate=False, loop_code=False, core_residual=False),
]


@pytest.mark.parametrize(
  'fields',
  [
    *[dict(name='crt', correction=name, **SMALL) for name in VARIANTS],
    dict(name='transformer', **SMALL),
    dict(name='transformer', style='roformer_head_ffn', **SMALL),
    dict(name='transformer', style='cart_dense', **SMALL),
    dict(name='transformer', style='cart_dense', latent_ratio=4, **SMALL),
    *[dict(name='cart', vocab_size=11, width=64) | switches for switches in CART_SWITCHES],
    *[
      dict(name='crt', block='cart', vocab_size=11, width=64) | switches
      for switches in (*CART_SWITCHES, dict(correction='sa'))
    ],
  ],
  ids=lambda fields: '-'.join(str(value) for value in fields.values()),
)
def test_the_formulas_count_the_arrays_that_models_make(fields):
  """Whatever `init` builds; and the resolved config of a model counts like the partial one."""
  is_cart = 'cart' in (fields['name'], fields.get('block')) or fields.get('style') == 'cart_dense'
  model = crt_jax.build(fields | ({} if is_cart else dict(heads=4, rotary='standard')))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  arrays = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert accounting.parameters(fields).stored == arrays
  assert accounting.parameters(model.config).stored == arrays


@pytest.mark.parametrize('config', [CRTConfig, TransformerConfig, CARTConfig])
def test_defaults_are_those_of_the_models(config):
  name = dict(CRTConfig='crt', TransformerConfig='transformer', CARTConfig='cart')[config.__name__]
  fields = vars(accounting.resolve(dict(name=name, vocab_size=8, width=8, layers=1)))
  defaults = {f.name: f.default for f in dataclasses.fields(config)}
  given = {'name', 'vocab_size', 'width', 'layers'}
  assert fields.keys() == defaults.keys() and fields['vocab_size'] == 8
  assert all(fields[field] == defaults[field] for field in defaults.keys() - given)
