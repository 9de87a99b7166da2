"""Pure drivers over functions they are given: plain scans that know nothing of any model."""
