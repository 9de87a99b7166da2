"""Scores a trained model on tasks of others; --help says how (crt_jax/cli/tasks.py)."""

from crt_jax.cli import tasks

if __name__ == '__main__':
  tasks.start()
