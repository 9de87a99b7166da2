"""Writes text with a trained model; --help says how (crt_jax/cli/generate.py)."""

from crt_jax.cli import generate

if __name__ == '__main__':
  generate.start()
