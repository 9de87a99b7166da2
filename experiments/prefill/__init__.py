"""Reading a prompt by parallel passes: what it gains, and how far it is from exact."""
