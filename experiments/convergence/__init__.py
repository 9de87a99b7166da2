"""How fast the parallel passes of a trained CRT approach its exact recurrence."""
