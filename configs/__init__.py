"""Experiments as documents: each file says what it runs, on what data, and what to expect."""
