"""How the runs of a sweep are started, watched and collected, for experiments/sweep.py."""
