"""Gets the published corpora; --help says how (crt_jax/cli/fetch.py)."""

from crt_jax.cli import fetch

if __name__ == '__main__':
  fetch.start()
