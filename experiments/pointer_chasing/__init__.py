"""How many levels of pointer chasing each model solves."""
