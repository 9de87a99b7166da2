"""A Slurm cluster of one node on this machine, for as long as a test needs it: munged, slurmctld
and slurmd as root, in a temporary folder, on ports of their own. Nothing of an installed cluster
is touched.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol')
# Debian keeps the daemons where only root's PATH leads.
PATH = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin'])
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=20
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""


def missing() -> str:
  """Says why there can be no cluster here; '' if there can."""
  absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
  if absent:
    return f'no Slurm here ({", ".join(absent)}): apt-get install slurm-wlm munge'
  return '' if os.geteuid() == 0 else 'the daemons of Slurm have to be started by root'


@contextlib.contextmanager
def cluster():
  """Starts the daemons; yields the environment in which sbatch and srun find them; stops them."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm-'))  # a socket's path has to be short
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  (folder / 'munge.key').write_bytes(os.urandom(128))
  (folder / 'munge.key').chmod(0o400)
  host = socket.gethostname().partition('.')[0]
  controller, node = free_ports(2)
  values = dict(folder=folder, host=host, controller=controller, node=node, cpus=os.cpu_count())
  (folder / 'slurm.conf').write_text(CONFIG.format(**values))
  environment = os.environ | {'PATH': PATH, 'SLURM_CONF': str(folder / 'slurm.conf')}
  munge = {
    option: f'--{option}={folder}/munge.{option.partition("-")[0]}'
    for option in ('socket', 'key-file', 'pid-file', 'log-file', 'seed-file')
  }
  commands = (
    ['munged', '--foreground', '--force', *munge.values()],
    ['slurmctld', '-D', '-i'],
    ['slurmd', '-D', '-N', host],
  )
  daemons = []
  try:
    for command in commands:
      with open(folder / f'{command[0]}.out', 'w') as out:
        daemons.append(
          subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=folder)
        )
      if command[0] == 'munged':
        wait_for(lambda: (folder / 'munge.socket').exists(), folder)
    wait_for(lambda: 'idle' in call(['sinfo', '-h', '-o', '%T'], environment), folder)
    yield environment
  finally:
    call(['scancel', '--user=root', '--full', '--signal=KILL'], environment)
    call(['scancel', '--user=root'], environment)
    for daemon in reversed(daemons):
      daemon.terminate()
    for daemon in daemons:
      try:
        daemon.wait(timeout=20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> list[int]:
  """Returns TCP ports that nobody listens on."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
    for s in sockets:
      s.bind(('127.0.0.1', 0))
    return [s.getsockname()[1] for s in sockets]


def call(command: list[str], environment: dict) -> str:
  """Runs a command and returns what it printed, also when it failed."""
  result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
  return result.stdout + result.stderr


def wait_for(is_true, folder: pathlib.Path | None = None, seconds: float = 60.0) -> None:
  """Asks twice a second until the answer is yes; shows the logs if it never comes."""
  end = time.monotonic() + seconds
  while not is_true():
    if time.monotonic() > end:
      logs = sorted(folder.glob('*.out')) + sorted(folder.glob('*.log')) if folder else []
      shown = '\n'.join(f'{log.name}: {log.read_text()[-1500:]}' for log in logs)
      raise AssertionError(f'nothing came of it within {seconds:.0f} s\n{shown}')
    time.sleep(0.5)
