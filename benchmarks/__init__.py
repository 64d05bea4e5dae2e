"""Benchmarks; `scripts/bench` runs those that RESULTS.md quotes."""
