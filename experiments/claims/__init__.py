"""The papers' claims: what was published, which runs decide it, and a verdict that is computed.

A claim is a record in `registered`; `statistics` and `verdicts` judge the runs that are in
docs/results/claims/, `page` writes docs/claims.md from them.
"""
