"""Entry points: each file here is run as `python -m experiments.NAME --help`."""
