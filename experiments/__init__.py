"""Entry points, run as `python -m experiments.NAME --help`; a study is a folder of that name."""
