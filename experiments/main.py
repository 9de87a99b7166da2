"""Trains and evaluates; --help says how (crt_jax/cli/train.py)."""

from crt_jax.cli import train

if __name__ == '__main__':
  train.start()
