import socket
import time

from crt_jax.cluster.watchdog import Watchdog


def hang(seconds):
  time.sleep(seconds)


def test_a_step_that_stands_is_said_with_its_place_and_less_and_less_often(capsys):
  with Watchdog(0.2, process=3) as watch:
    watch.beat(1)
    watch.beat(7)
    hang(1.3)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3, lines  # after 0.2, 0.4 and 0.8 s
  assert lines[0].startswith('warning: step 7 takes 0 s already; process 3 on')
  assert socket.gethostname() in lines[0] and 'hang (test_watchdog.py:' in lines[0]


def test_steps_that_move_say_nothing(capsys):
  with Watchdog(0.5, process=0) as watch:
    for step in range(8):
      watch.beat(step)
      time.sleep(0.1)
  with Watchdog(0, process=0) as watch:
    time.sleep(0.2)
  assert capsys.readouterr().err == ''
