"""Linen modules for one layer each; they know nothing of any model."""
