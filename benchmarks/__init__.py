"""Benchmarks, and the experiments that docs/results.md is about: python -m benchmarks --help."""
