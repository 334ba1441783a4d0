"""Benchmarks: one script, one question. Run them with `python -m benchmarks`."""
