"""Makes a pretrained model the beginning of a run; --help says how (crt_jax/cli/convert.py)."""

from crt_jax.cli import convert

if __name__ == '__main__':
  convert.start()
