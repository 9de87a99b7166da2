"""Sweeps: lists of runs for experiments.sweep."""
