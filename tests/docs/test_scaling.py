"""Publishing what was compiled ahead of time: every table, and what was left out."""

import pathlib

from docs import scaling

ORIGIN = dict(versions=dict(jax='0.10.2'), commit='0123456789')
MESH = dict(data=1, fsdp=4, tensor=2)


def compiled(gib, **more):
  sent = dict(count=3, result_bytes=2**20, sent_bytes=2**21)
  return dict(
    mesh=MESH,
    bytes_a_device=int(gib * 2**30),
    sent_bytes_a_device=2**21,
    flops_a_device=1e12,
    collectives={'all-reduce': sent},
    **more,
  )


def lines_of(name, **record):
  [text] = scaling.texts(record | dict(origin=ORIGIN), name, pathlib.Path()).values()
  return text.splitlines()


def test_what_fits_what_does_not_and_what_is_missing():
  results = {
    'small': {'cpu:8': compiled(1.5), 'v5e:4x4': compiled(1.25, fits=True)},
    'large': {
      'cpu:8': compiled(30),
      'v5e:4x4': compiled(20, fits=False, commit='abcdef012', jax='0.12.0'),
    },
    'other': {'v5e:4x4': compiled(2, fits=True, gather='layer', step='does not fit')},
    'refused': {'v5e:4x4': dict(mesh=MESH, fits=False, error='RESOURCE_EXHAUSTED')},
    'odd': {'v5e:4x4': dict(error='the compiler crashed')},
  }
  lines = lines_of('aot', results=results, configs=[*results, 'never'])
  assert '| small | 1 x 4 x 2 | 1.50 | 2 | 1 x 4 x 2 | 1.25 | 2 |' in lines
  assert '| large | 1 x 4 x 2 | 30.00 | 2 | 1 x 4 x 2 | 20.00, too much | 2 |' in lines
  assert '| other |  |  |  | 1 x 4 x 2 | 2.00, by layer | 2 |' in lines
  assert '| refused |  |  |  | 1 x 4 x 2 | does not fit |  |' in lines
  assert '| odd |  |  |  |  | compiler crashed |  |' in lines
  fit = 'On v5e:4x4 2 of 4 compiled configs fit. Not: large, refused. Its compiler crashes on odd.'
  assert fit in lines
  assert 'Not compiled for cpu:8: 4 of 6, other, refused, odd, never.' in lines
  assert 'Not compiled for v5e:4x4: 1 of 6, never.' in lines
  assert 'Compiled with jax 0.10.2, 0.12.0, commit 0123456, abcdef0.' in lines


def test_weak_scaling_and_what_it_predicts():
  results = {'small': {f'data {n}': compiled(n) for n in (1, 2, 4, 8)}}
  lines = lines_of('scaling', results=results)
  assert '| small | data | 8 |  | 3 x, 1.0 MiB |  | 2.0 | 8.00 |' in lines
  # 1e12 FLOP at 0.4 x 989 TFLOP/s; 2 MiB at 450 GB/s over a node of 8, 7/8 of a ring without end.
  compute, send = 1e12 / 989e12 / 0.4, 2**21 / 450e9
  lines = lines_of('predicted', results=results)
  [row] = [line for line in lines if line.startswith('| small | data | 2.5 |')]
  assert row.split(' | ')[3] == f'{compute / (compute + send):.0%} to 100%'
