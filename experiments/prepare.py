"""Tokenises a corpus ahead of training; --help says how (crt_jax/cli/prepare.py)."""

from crt_jax.cli import prepare

if __name__ == '__main__':
  prepare.start()
