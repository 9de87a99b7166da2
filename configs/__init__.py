"""Experiments as documents: each file says what to run, on what, for how long and what to
expect."""
