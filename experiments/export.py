"""Writes a trained model as a folder for others; --help says how (crt_jax/cli/export.py)."""

from crt_jax.cli import export

if __name__ == '__main__':
  export.start()
