"""Variants of one small config, several seeds each: the gate and the loops of CART."""
