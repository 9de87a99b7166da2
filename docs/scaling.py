"""What docs/scaling.md shows of programs that were compiled ahead of time.

python -m benchmarks.aot --output=benchmarks/results/aot.json
python -m benchmarks.aot --scaling --output=benchmarks/results/weak_scaling.json
python -m benchmarks.aot --slices --output=benchmarks/results/slices.json
"""

import pathlib

from benchmarks.collectives import KINDS
from experiments import pages

GIB, MIB = 2**30, 2**20

# The assumptions of the prediction; docs/scaling.md states them.
PEAK, UTILISATION = 989e12, 0.40  # FLOP/s of an H100 in bfloat16, and the share a step reaches
NVLINK, NETWORK = 450e9, 50e9  # bytes/s of a GPU, one direction
NODE = 8
GPUS = (8, 16, 32, 64, 128, 256)


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table of that name, and what it was compiled with."""
  results = record['results']
  tables = {'aot': fits_table, 'scaling': scaling_table, 'predicted': predicted_table}
  parts = (tables | {'slices': slices_table})[name](results)
  parts += unfinished(record) if name == 'aot' else []
  return {'docs/scaling.md': pages.paragraphs(*parts, made(record))}


def made(record: dict) -> str:
  origin = record['origin']
  libtpu = f', libtpu {origin["libtpu"]}' if origin.get('libtpu') else ''
  cells = [cell for found in record['results'].values() for cell in found.values()]
  versions = dict.fromkeys(cell.get('jax', origin['versions']['jax']) for cell in cells)
  commits = dict.fromkeys(cell.get('commit', origin['commit'])[:7] for cell in cells)
  return f'Compiled with jax {", ".join(versions)}{libtpu}, commit {", ".join(commits)}.'


def unfinished(record: dict) -> list[str]:
  """Returns a paragraph for each target that not every config was compiled for: which were not."""
  results, configs = record['results'], record['configs']
  lines = []
  for target in targets_of(results):
    left = [name for name in configs if target not in results.get(name, {})]
    if left:
      names = ', '.join(left) if len(left) <= 10 else 'without numbers above'
      lines.append(f'Not compiled for {target}: {len(left)} of {len(configs)}, {names}.')
  return lines


def targets_of(results: dict) -> list[str]:
  return list(dict.fromkeys(target for found in results.values() for target in found))


def fits_table(results: dict) -> list[str]:
  """Returns a line per config: bytes and communication on each target."""
  targets = targets_of(results)
  head = ['config', *(f'{t}: {x}' for t in targets for x in ('mesh', 'GiB a device', 'sent, MiB'))]
  rows = []
  for name, found in results.items():
    cells = [name]
    for target in targets:
      cells += fits_cells(found.get(target))
    rows.append(cells)
  lines = [pages.table(head, rows)]
  chips = [t for t in targets if not t.startswith('cpu')]
  for target in chips:
    found = {name: cells[target] for name, cells in results.items() if target in cells}
    tried = {name: cell for name, cell in found.items() if 'fits' in cell}
    not_fit = [name for name, cell in tried.items() if not cell['fits']]
    line = f'On {target} {len(tried) - len(not_fit)} of {len(tried)} compiled configs fit.'
    line += f' Not: {", ".join(not_fit)}.' if not_fit else ''
    crashed = [name for name in found if name not in tried]
    line += f' Its compiler crashes on {", ".join(crashed)}.' if crashed else ''
    lines.append(line)
  return lines


def fits_cells(cell: dict | None) -> list[str]:
  if cell is None:
    return ['', '', '']
  if 'mesh' not in cell:
    return ['', 'compiler crashed', '']
  mesh = ' x '.join(str(size) for size in cell['mesh'].values())
  if 'error' in cell:
    return [mesh, 'does not fit', '']
  size = f'{cell["bytes_a_device"] / GIB:.2f}'
  size += '' if cell.get('fits', True) else ', too much'
  size += ', by layer' if cell.get('gather') == 'layer' else ''
  return [
    mesh,
    size,
    f'{cell["sent_bytes_a_device"] / MIB:,.0f}',
  ]


def scaling_table(results: dict) -> list[str]:
  """Returns a line per config, mesh and device number: the count and MiB of each collective."""
  head = ['config', 'mesh', 'devices', *KINDS[:3], 'sent by a device, MiB', 'GiB a device']
  rows = []
  for name, found in results.items():
    for label, cell in found.items():
      way, count = label.rsplit(' ', 1)
      kinds = [kind_cell(cell['collectives'].get(kind)) for kind in KINDS[:3]]
      sent, size = cell['sent_bytes_a_device'] / MIB, cell['bytes_a_device'] / GIB
      rows.append([name, way, count, *kinds, f'{sent:,.1f}', f'{size:.2f}'])
  return [pages.table(head, rows)]


def slices_table(results: dict) -> list[str]:
  """Returns a line per config, number of slices and axis across them: bytes on either network."""
  head = ['config', 'devices', 'across', 'mesh', 'sent by a device, MiB', 'to other slices, MiB']
  rows = []
  for name, found in results.items():
    for label, cell in found.items():
      target, axis = label.split(' ')
      if 'error' in cell:
        rows.append([name, target, axis, cell['error'].splitlines()[0]])
        continue
      mesh = ' x '.join(str(size) for size in cell['mesh'].values())
      sent = [cell[f'{kind}_bytes_a_device'] / MIB for kind in ('sent', 'network')]
      rows.append([name, target, axis, mesh, *(f'{mib:,.1f}' for mib in sent)])
  return [pages.table(head, rows)]


def kind_cell(found: dict | None) -> str:
  return '' if found is None else f'{found["count"]} x, {found["result_bytes"] / MIB:,.1f} MiB'


def predicted_table(results: dict) -> list[str]:
  """Returns a line per config: the predicted share of one GPU's speed on many GPUs."""
  head = ['config', 'mesh', 'compute, ms', *(f'{gpus} GPUs' for gpus in GPUS)]
  rows = []
  for name, found in results.items():
    for way in dict.fromkeys(label.rsplit(' ', 1)[0] for label in found):
      if f'{way} {NODE}' not in found:
        continue
      cell = found[f'{way} {NODE}']
      compute = cell['flops_a_device'] / PEAK / UTILISATION
      sent = cell['sent_bytes_a_device'] / (1 - 1 / NODE)  # of a ring without end
      shares = []
      for gpus in GPUS:
        send = seconds_to_send(sent, gpus)
        shares.append(f'{compute / (compute + send):.0%} to {compute / max(compute, send):.0%}')
      rows.append([name, way, f'{1e3 * compute:.1f}', *shares])
  return [pages.table(head, rows)]


def seconds_to_send(sent: float, gpus: int) -> float:
  """Returns the seconds of a step's collectives within a node, and an eighth across nodes."""
  nodes = gpus // NODE
  return sent * (1 - 1 / NODE) / NVLINK + sent / NODE * (1 - 1 / nodes) / NETWORK
