"""Pure drivers of recurrences: scans over functions they are given, independent of any model."""
