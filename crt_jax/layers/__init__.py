"""Linen modules of one layer each, independent of any model."""
