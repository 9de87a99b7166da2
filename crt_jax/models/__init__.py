"""The models: one contract (base.py), three families (transformer, crt, cart)."""
