"""How fast models decode: time per token beside what reading memory and launches must take."""
