"""deploy/ without a cluster: its commands are those of this project and fit what they ask for, and
what an exit code leads to. `make lint-manifests` checks the files against Kubernetes' schema."""

import ast
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
import types

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster

from crt_jax import schema, sharding
from crt_jax.cli import config_files
from crt_jax.cluster import launcher
from tests.conftest import QUICK_COMPILER
from tests.end_to_end import runs
from tests.end_to_end.test_processes import PACE, other_host  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / 'deploy'
JOBSETS = ('jobset_gpu', 'jobset_tpu')
SCRIPTS = ('slurm_array', 'slurm_nodes')
SLURM = dict(SLURM_ARRAY_TASK_ID='2', SLURM_JOB_ID='17', SLURM_CPUS_PER_TASK='4')


class JobSet:
  """The parts of a manifest that the tests read."""

  def __init__(self, name):
    self.whole = yaml.safe_load((DEPLOY / f'{name}.yaml').read_text())
    [self.replicated] = self.whole['spec']['replicatedJobs']
    self.job = self.replicated['template']['spec']
    self.pod = self.job['template']['spec']
    [self.container] = self.pod['containers']
    [self.devices_a_pod] = self.container['resources']['limits'].values()

  def command(self, **environment):
    """As the kubelet starts it: $(NAME) is a variable of the container."""
    words = [*self.container['command'], *self.container['args']]
    return [re.sub(r'\$\((\w+)\)', lambda name: environment[name[1]], word) for word in words]

  def answer(self, code):
    """What Kubernetes and JobSet do when a pod ends with an exit code."""
    for rule in self.job['podFailurePolicy']['rules']:
      said = rule['onExitCodes']
      assert said['containerName'] == self.container['name'] and said['operator'] == 'In'
      if code in said['values']:
        if rule['action'] == 'Ignore':
          return 'a new pod'
        assert rule['action'] == 'FailJob'
        return self._of_the_set('PodFailurePolicy')
    assert self.job['backoffLimit'] == 0
    return self._of_the_set('BackoffLimitExceeded')

  def _of_the_set(self, reason):
    policy = self.whole['spec']['failurePolicy']
    fitting = [rule for rule in policy['rules'] if reason in rule['onJobFailureReasons']]
    return fitting[0]['action'] if fitting else f'RestartJobSet, {policy["maxRestarts"]} times'


def option(script, name):
  return int(re.search(rf'(?m)^#SBATCH --{name}=(\d+)', script)[1])


def launch(name):
  """The command of a file, and its devices by slice or node."""
  if name in JOBSETS:
    jobset = JobSet(name)
    devices = jobset.job['parallelism'] * jobset.devices_a_pod
    command = jobset.command(JOB_COMPLETION_INDEX='0')
    if name == 'jobset_tpu':
      return command, [devices] * jobset.replicated['replicas']
    return command, [jobset.devices_a_pod] * jobset.job['parallelism']
  script = (DEPLOY / f'{name}.sbatch').read_text()
  line = re.search(r'(?m)^srun (.*)$', script)[1]
  for variable, value in SLURM.items():
    line = line.replace(f'${variable}', value)
  return shlex.split(line), [option(script, 'gpus-per-node')] * option(script, 'nodes')


@pytest.mark.parametrize('name', JOBSETS + SCRIPTS)
def test_the_command_fits_the_devices_that_are_asked_for(name):
  command, counts = launch(name)
  assert command[0] in ('python', '.venv/bin/python')
  assert command[1:3] == ['-m', 'experiments.main'] and not any('$' in word for word in command)
  parsed = subprocess.run(
    [sys.executable, *command[1:], '--help'], cwd=ROOT, capture_output=True, text=True
  )
  assert parsed.returncode == 0, parsed.stderr
  spec = next(word for word in command if word.startswith('--config='))
  config = config_files.load(spec.removeprefix('--config='))
  for word in command:
    if match := re.match(r'--config\.([\w.]+)=(.*)', word):
      value = ast.literal_eval(match[2]) if match[2].isdigit() else match[2]
      config.update_from_flattened_dict({match[1]: value})
  schema.check(config)
  devices = [
    types.SimpleNamespace(slice_index=i, platform='cpu', device_kind='cpu')
    for i, count in enumerate(counts)
    for _ in range(count)
  ]
  mesh = sharding.arranged(config.mesh, devices)
  for row in mesh.reshape(mesh.shape[0], -1):
    assert len({device.slice_index for device in row}) == 1  # only data crosses the network
  sharding.check_batch(
    config.data.batch_size, config.train.accumulation, sharding.make_abstract_mesh(*mesh.shape)
  )


@pytest.mark.parametrize('name', JOBSETS)
def test_exit_codes_of_a_pod(name):
  jobset = JobSet(name)
  assert jobset.answer(75) == 'a new pod'
  assert jobset.answer(2) == 'FailJobSet'
  assert jobset.answer(1) == jobset.answer(137) == 'RestartJobSet, 3 times'
  assert jobset.pod['restartPolicy'] == 'Never'  # podFailurePolicy asks for it


@pytest.mark.parametrize('name', SCRIPTS)
@pytest.mark.parametrize('code', [0, 2, 75])
def test_exit_codes_of_a_script(name, code, tmp_path):
  """In bash, with an srun that ends so and a scontrol that says what it is told."""
  for program, body in dict(srun=f'exit {code}', scontrol='echo "$@"').items():
    (tmp_path / program).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / program).chmod(0o755)
  path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
  done = subprocess.run(
    ['bash', DEPLOY / f'{name}.sbatch'], env=SLURM | {'PATH': path}, capture_output=True, text=True
  )
  assert done.returncode == code and not done.stderr
  assert done.stdout == ('requeue 17\n' if code == 75 else '')


def test_pods_with_gpus_meet_where_the_flags_say():
  jobset = JobSet('jobset_gpu')
  name, job = jobset.whole['metadata']['name'], jobset.replicated['name']
  [port] = jobset.container['ports']
  count = jobset.job['parallelism']
  assert count == jobset.job['completions'] and jobset.job['completionMode'] == 'Indexed'
  command = jobset.command(JOB_COMPLETION_INDEX='3')
  assert f'--coordinator={name}-{job}-0-0.{name}:{port["containerPort"]}' in command
  assert f'--num_processes={count}' in command and '--process_id=3' in command


def test_hosts_of_tpus_are_found_by_what_gke_says(monkeypatch):
  """In the environment that GKE gives the third host of the second slice."""
  jobset = JobSet('jobset_tpu')
  hosts, slices = jobset.job['parallelism'], jobset.replicated['replicas']
  chips = jobset.pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  assert hosts * jobset.devices_a_pod == math.prod(map(int, chips))
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  said = dict(MEGASCALE_COORDINATOR_ADDRESS='localhost', MEGASCALE_NUM_SLICES=str(slices))
  said |= dict(MEGASCALE_SLICE_ID='1', TPU_WORKER_ID='2', TPU_WORKER_HOSTNAMES='a,b,c,d')
  for variable, value in said.items():
    monkeypatch.setenv(variable, value)
  port = jobset.container['ports'][-1]['containerPort']
  place = launcher.find_place('on')
  assert place == launcher.Place(f'localhost:{port}', slices * hosts, hosts + 2)


@pytest.mark.parametrize('accelerator', ['cpu', 'cuda12', 'cuda13', 'tpu', 'rocm'])
def test_the_image_installs_what_is_locked_and_one_plugin(accelerator, tmp_path):
  """Its RUN lines in a shell, with a python that says what it is told."""
  text = re.sub(r'\\\n', ' ', (DEPLOY / 'Dockerfile').read_text())
  (tmp_path / 'python').write_text(
    '#!/bin/sh\nif [ "$1" = -c ]; then echo 1.2.3; else echo "$@"; fi\n'
  )
  (tmp_path / 'python').chmod(0o755)
  variables = {'ACCELERATOR': accelerator, 'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'}
  said, codes = '', []
  for line in re.findall(r'(?m)^RUN (.*)$', text):
    done = subprocess.run(['sh', '-c', line], env=variables, capture_output=True, text=True)
    said, codes = said + done.stdout, [*codes, done.returncode]
  plugin = f'-m pip install jax[{accelerator}]==1.2.3\n'
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  is_known = accelerator in {'cpu', *extras}
  assert codes == [0, 0 if is_known else 2, 0]
  assert said == (
    '-m pip install --require-hashes -r requirements.lock\n'
    + (plugin if is_known and accelerator != 'cpu' else '')
    + '-m pip install --no-build-isolation --no-deps -e .\n'
  )


def test_the_image_runs_the_command_of_the_jobsets():
  entry = re.search(r'(?m)^ENTRYPOINT (.*)$', (DEPLOY / 'Dockerfile').read_text())[1]
  for name in JOBSETS:
    assert JobSet(name).container['command'] == ast.literal_eval(entry)


@pytest.mark.slow
def test_pods_that_are_told_to_stop_go_on(tmp_path, other_host):  # noqa: F811
  """The command of the JobSet as two processes of this machine: SIGTERM to one, as from a node that
  is drained, then each again as the JobSet asks."""
  jobset = JobSet('jobset_gpu')
  with socket.create_server(('', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  changes = {
    '--config': 'tests/training/tiny.py',
    '--config.data.files': None,
    '--config.mesh.fsdp': '1',
    '--workdir': str(tmp_path / 'run'),
    '--coordinator': address,
    '--num_processes': '2',
  }
  sizes = ('--config.train.steps=40', '--config.model.depth_min=0', '--config.train.log_every=1')

  def pod(index, environment):
    command = jobset.command(JOB_COMPLETION_INDEX=str(index))
    words = [(word.partition('=')[0], word) for word in command[1:]]
    ours = [f'{key}={changes[key]}' if key in changes else word for key, word in words]
    kept = [word for word in ours if not word.endswith('=None')]
    return subprocess.Popen(
      [sys.executable, *kept, *sizes],
      cwd=ROOT,
      env=runs.environment(tmp_path / 'cache') | {'XLA_FLAGS': QUICK_COMPILER} | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  pods = [pod(index, other_host(OTHER_PACE=PACE)) for index in range(2)]
  runs.wait_for_step(pods[0], 2)
  pods[1].send_signal(signal.SIGTERM)
  outs = [each.communicate(timeout=300)[0] for each in pods]
  assert [jobset.answer(each.returncode) for each in pods] == ['a new pod'] * 2, outs
  pods = [pod(index, {}) for index in range(2)]
  outs = [each.communicate(timeout=300)[0] for each in pods]
  assert [each.returncode for each in pods] == [0, 0], outs
  assert 'continuing after step' in outs[0] and (tmp_path / 'run/finished.json').exists()
